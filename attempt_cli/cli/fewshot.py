import click


@click.command("fewshot")
def command() -> None:
    """coming"""
