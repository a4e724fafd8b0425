"""The page of `sam4ir demo`: drop an image, choose weights, compare before and after, download the result.

Nothing leaves the machine: the page has no fonts, scripts or statistics of other servers, and its headers forbid a
browser to ask for any.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported

import gradio as gr
import numpy as np

from sam4ir.demo.networks import Networks
from sam4ir.errors import UserError
from sam4ir.utils.files import write_bytes

LARGEST_FILE = 64 << 20  # bytes of an upload
WAITING = 16  # images that may wait for their turn
TIDY = 3600  # seconds after which files of visitors are removed

# a browser asks no other server for anything, whatever the page says
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; form-action 'self'; frame-ancestors 'self'; base-uri 'self'; object-src 'none'"
)
FONTS = ["system-ui", "sans-serif"]
MONO_FONTS = ["ui-monospace", "monospace"]
TITLE = "sam4ir"
INTRODUCTION = (
    "# sam4ir\nRestore a photograph: choose weights for its fault, drop the image, and move the slider. "
    "Images stay on this machine."
)
TILE_HELP = "Pixels. Large images go through the network in blended tiles, which need less memory. 0 takes the whole."
PREVIEW_HEIGHT = 460  # pixels

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class LocalOnly:
    """An ASGI middleware that adds the policy to every answer. app: what answers."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        """Answer a request."""

        async def send_with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", []))
                headers.append((b"content-security-policy", POLICY.encode()))
                headers.append((b"referrer-policy", b"no-referrer"))
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def build_page(networks: Networks, tile: int) -> gr.Blocks:
    """Return the page. tile: the side of tiles that it begins with; 0 takes whole images."""

    def restore(file: str | None, name: str, side: float | None) -> tuple[tuple[np.ndarray, np.ndarray], Any, str]:
        if not file:
            raise gr.Error("Drop an image first.", print_exception=False)
        source = Path(file)
        try:
            result = networks.restore(source, name, int(side or 0), source.name)
        except (UserError, OSError) as error:
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error
        target = Path(tempfile.mkdtemp(prefix="restored-", dir=_folder())) / f"{source.stem}_restored.png"
        write_bytes(target, result.png)
        return (result.before, result.after), gr.DownloadButton(value=str(target), interactive=True), result.words

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(TIDY, TIDY)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.Image(
                    label="Degraded image",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=240,
                    elem_id="input",
                )
                weights = gr.Dropdown(networks.names, value=networks.names[0], label="Weights", elem_id="weights")
                side = gr.Number(
                    tile, label="Tile", info=TILE_HELP, minimum=0, maximum=8192, precision=0, elem_id="tile"
                )
                button = gr.Button("Restore", variant="primary", elem_id="restore")
            with gr.Column(scale=2, min_width=420):
                slider = gr.ImageSlider(
                    label="Before and after",
                    type="numpy",
                    format="png",
                    height=PREVIEW_HEIGHT,
                    max_height=PREVIEW_HEIGHT,
                    interactive=False,
                    buttons=["fullscreen"],
                    elem_id="slider",
                )
                words = gr.Markdown(elem_id="words")
                download = gr.DownloadButton("Download PNG", interactive=False, elem_id="download")
        button.click(
            restore,
            [image, weights, side],
            [slider, download, words],
            concurrency_limit=1,
            api_name="restore",
        )
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    return page


def _folder() -> str:
    """Return the folder of gradio's temporary files, whose files a page may serve."""
    folder = os.environ.get("GRADIO_TEMP_DIR") or str(Path(tempfile.gettempdir()) / "gradio")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder


def serve(page: gr.Blocks, host: str, port: int | None, *, wait: bool = True) -> str:
    """Serve the page; return its address. wait: until Ctrl-C.

    port: None takes the first that is free from 7860 on. Raises UserError where the port is taken.
    """
    from starlette.middleware import Middleware

    theme = gr.themes.Default(font=FONTS, font_mono=MONO_FONTS)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            max_file_size=LARGEST_FILE,
            footer_links=[],
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=theme,
            app_kwargs={"middleware": [Middleware(LocalOnly)]},
        )
    except OSError as error:
        raise UserError(f"--port: {error}") from error
    print(f"{address} (Ctrl-C ends it)", flush=True)
    if wait:
        page.block_thread()
    return str(address)
