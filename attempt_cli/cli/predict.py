import click


@click.command("predict")
def command() -> None:
    """coming"""
