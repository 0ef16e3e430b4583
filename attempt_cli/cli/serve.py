"""`attempt serve`: prompts over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import BackboneOptions, max_tokens_option, refuse_options, where_options

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.server.run import Serving

# what says how layers are computed here
LOCAL = ("input_cache", "max_tokens", "wait", "device", "dtype", "quantize")


@click.command("serve")
@click.argument("names", nargs=-1, metavar="[NAME…]")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=int, default=8000, show_default=True, help="The port; 0 takes a free one.")
@click.option("--api-key", envvar="ATTEMPT_API_KEY", help="Ask for this bearer token. [default: $ATTEMPT_API_KEY]")
@click.option("--input-cache", help="Memory for the inputs read last, e.g. 4GiB; 0 for none. [default: a quarter]")
@max_tokens_option
@click.option("--wait", type=float, default=3.0, show_default=True, help="Milliseconds to wait for others to join.")
@click.option("--max-body", default="1MiB", show_default=True, help="The largest body of a request.")
@click.option("--max-rows", type=int, default=256, show_default=True, help="Answers to a request: inputs × models.")
@click.option("--max-new-tokens", type=int, default=256, show_default=True, help="The longest text that is written.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds for a request.")
@click.option("--max-queue", type=int, default=1024, show_default=True, help="Inputs that may wait.")
@click.option("--upstream", metavar="URL", help="Forward embeddings to this server, which has the layers (vLLM).")
@click.option("--upstream-model", metavar="NAME", help="The model's name there. [default: the backbone's]")
@click.option("--upstream-key", envvar="ATTEMPT_UPSTREAM_KEY", help="Its key. [default: $ATTEMPT_UPSTREAM_KEY]")
@where_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    names: tuple[str, ...],
    input_cache: str | None,
    max_body: str,
    upstream: str | None,
    where: BackboneOptions,
    **limits: Any,
) -> None:
    """Serve prompts and compositions over HTTP, by name, on one backbone.

    Without NAMEs all of the registry that belong to the backbone; what is added or removed later is noticed. The face
    is OpenAI's (/v1/models, /v1/completions, /v1/chat/completions, model = a prompt's name), with /predict for several
    prompts on one input, and a page to try them at /. Ctrl-C or SIGTERM ends it when what was taken is answered.

    With --upstream the backbone's layers are another server's, which takes prompt embeddings, as vLLM does with
    --enable-prompt-embeds: here only its embedding table is loaded, prompts are mixed, and embeddings are forwarded.

    \b
      attempt serve
      attempt serve mood topic --port 8100
      ATTEMPT_API_KEY=… attempt serve --host 0.0.0.0
      attempt serve --upstream http://127.0.0.1:8001
    """
    from attempt_cli.api.serving import serve
    from attempt_cli.byte_sizes import parse_size

    def started(serving: Serving) -> None:
        settings.output.record("serving", serving.record(), name="url")
        settings.output.note("Ctrl-C ends it.")

    unread, where_unread = (LOCAL, "with --upstream") if upstream else (("upstream_key",), "without --upstream")
    refuse_options(click.get_current_context(), unread, where_unread)
    session = settings.session(where, input_cache=parse_size(input_cache) if input_cache is not None else None)
    serve(names, started=started, session=session, max_body=parse_size(max_body), upstream=upstream, **limits)
    settings.output.note("Stopped.")
