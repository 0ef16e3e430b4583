import click


@click.command("backbone")
def command() -> None:
    """coming"""
