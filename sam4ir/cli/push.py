"""Publish a network on a model hub: its weights, an option file that describes it, and a model card.

sam4ir push experiments/<name> owner/name --licence apache-2.0
sam4ir push net_g_latest.pth owner/name --private --dry-run

It uploads model.safetensors, options.yml and README.md; the card is written from the options and scores of the run.
Others then load it by sam4ir.load("hf:owner/name"). The token is that of `hf auth login` or HF_TOKEN, the hub that of
HF_ENDPOINT. It needs huggingface_hub: pip install "sam4ir[hub]".
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from sam4ir.utils import cli

MODEL = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("weights", metavar="RUN|FILE", help="the folder of a run, or a weights file")
    command.add_argument(
        "model", type=model_name, metavar="OWNER/NAME", help="of the model on the hub; it is made if missing"
    )
    command.add_argument(
        "-opt", "--opt", type=Path, metavar="FILE", help="option file with network_g, for weights outside a run"
    )
    command.add_argument("--licence", "--license", metavar="ID", help="of the weights, such as apache-2.0 or cc-by-4.0")
    command.add_argument("--private", action="store_true", help="make the model visible to its owner alone")
    command.add_argument("--message", default="Upload a network of sam4ir", help="of the commit")
    command.add_argument("--dry-run", action="store_true", help="print the files and the card; upload nothing")
    return command


def model_name(text: str) -> str:
    """Return a flag's owner/name."""
    if MODEL.fullmatch(text.removeprefix("hf:")) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no model; write owner/name")
    return text.removeprefix("hf:")


def main(words: Sequence[str] | None = None) -> int:
    """Write the files of a model and upload them; return the exit status."""
    flags = parser().parse_args(words)
    import tempfile

    from sam4ir.api.network import weights_and_options
    from sam4ir.engine.model_card import CARD_FILE, write_model
    from sam4ir.engine.restore.settings import network_options
    from sam4ir.errors import UserError
    from sam4ir.utils.files import read_text

    file, option_file = weights_and_options(flags.weights, None)
    if file is None or not Path(file).is_file():
        raise UserError(f"{flags.weights}: is neither a weights file nor the folder of a run")
    described = network_options(file, flags.opt or option_file, "cpu")
    for note in described.notes:
        print(note)
    with tempfile.TemporaryDirectory(prefix="sam4ir-push-") as folder:
        published = write_model(described.options, file, flags.model, flags.licence, Path(folder))
        for line in published.lines:
            print(line)
        if flags.licence is None:
            print("the card states no licence; --licence names one")
        if flags.dry_run:
            print(f"\n{read_text(Path(folder) / CARD_FILE)}")
            print(f"nothing was uploaded (--dry-run); it would go to hf:{flags.model}")
            return 0
        from sam4ir.priors.zoo.hub_upload import upload

        address = upload(published.files, flags.model, private=flags.private, message=flags.message)
    print(f'{address}\nload it by sam4ir.load("hf:{flags.model}")')
    return 0
