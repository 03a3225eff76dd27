"""The command serve: an endpoint for agents that speak the OpenAI API."""

import signal
import threading

import click

from swarmkv_lab.cli.options import RUNS_MODEL, open_model, options
from swarmkv_lab.cli.program import Asked, Command


@click.command(cls=Command, epilog="example: swarmkv-lab serve --port 8080 --layout composed")
@click.option("--host", default="127.0.0.1", metavar="NAME", help="address to listen on; others need --key")
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, metavar="N", help="0: one that is free")
@click.option("--key", metavar="TEXT", envvar="SWARMKV_KEY", help="what clients must send", show_default="none")
@click.option("--layout", default="as_sent", metavar="NAME", help="as_sent, document_first or composed")
@click.option("--exact", is_flag=True, help="one request at a time, with the bits of shared")
@click.option("--cache", is_flag=True, help="with --exact: documents are kept, and are there after a restart")
@click.option("--n-ctx", type=click.IntRange(1), metavar="N", help="tokens that are held at once", show_default="8192")
@options("--kv-type", *RUNS_MODEL)
def serve(asked: Asked) -> None:
    """Answer agents that speak the OpenAI API.

    What their prompts have in common is prefilled once. Ends on Ctrl-C and SIGTERM.
    """
    from swarmkv_lab.serve.server import Server

    how = {"host": asked.host, "port": asked.port, "key": asked.key, "layout": asked.layout, "exact": asked.exact}
    how |= {"cache": asked.cache, "n_ctx": asked.n_ctx, "kv_type": asked.kv_type, "n_threads": asked.threads}
    ended = threading.Event()
    with open_model(asked) as model, Server(model, **how) as server:
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        print(f"{model.name} answers at {server.url}", flush=True)
        while not ended.wait(0.2):  # where another thread got the signal, this one wakes up to handle it
            pass
