import click


@click.command("compose")
def command() -> None:
    """coming"""
