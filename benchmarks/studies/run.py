"""`quire bench study NAME`: run one study; write its JSON, its figure, and its place in docs/benchmarks.md."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import msgspec

from quire.benchmarks.studies.record import PageError, Record, record, update_page
from quire.benchmarks.studies.settings import Settings
from quire.clients.terminal import USAGE, CommandFailed, Parser

STUDIES = {
    "kv-cache": "quire.benchmarks.studies.kv_cache",
    "kv-memory": "quire.benchmarks.studies.kv_memory",
    "batching": "quire.benchmarks.studies.batching",
    "prefix-cache": "quire.benchmarks.studies.prefix_cache",
    "streaming": "quire.benchmarks.studies.streaming",
    "quantization": "quire.benchmarks.studies.quantization",
    "threads": "quire.benchmarks.studies.threads",
    "logit-error": "quire.benchmarks.studies.logit_error",
}
"""Name to a module with `Result`, `measure(settings)`, `draw(result, path)` and `table(result)`."""


def main(words: list[str]) -> int:
    """Run a study, or with --redraw only draw what its JSON holds."""
    options = _parser().parse(words)
    study: Any = importlib.import_module(STUDIES[options.name])
    file = options.result_dir / f"{options.name.replace('-', '_')}.json"
    if options.redraw:
        found = _read(file, study.Result)
    else:
        result = study.measure(Settings(options.model, options.seed, options.tiny))
        found = record(_command(options.name, options.model), result)
        found.save(file)
        print(f"wrote {file}")
    print(study.table(found.result))
    if options.plot or options.update_page:
        image = options.image_dir / f"{options.name}.png"
        study.draw(found.result, image)
        print(f"wrote {image}")
        if options.update_page:
            try:
                update_page(options.page, options.name, section(options.page, study, found, file, image))
            except (PageError, FileNotFoundError) as error:
                raise CommandFailed(str(error), USAGE) from error
            print(f"updated {options.page}")
    return 0


def section(page: Path, study: Any, found: Record, file: Path, image: Path) -> str:
    """What stands on the page: table, figure, and where they come from."""
    title = study.__doc__.strip().splitlines()[0]
    shown = os.path.relpath(image, page.parent)
    machine = found.machine
    return "\n".join([
        study.table(found.result),
        "",
        f"![{title}]({shown})",
        "",
        f"`{found.command}` on {found.date}, {machine['cores']} cores of {machine['processor']}; `{file.name}`.",
    ])  # fmt: skip


def _read(file: Path, kind: type[Any]) -> Record:
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError) as error:
        raise CommandFailed(f"--redraw: {file}: {error}", USAGE) from error
    return msgspec.structs.replace(found, result=msgspec.convert(found.result, kind))


def _command(name: str, model: str | None) -> str:
    return f"quire bench study {name}" + (f" --model {model}" if model else "")


def _parser() -> Parser:
    parser = Parser("bench study", "The figures of docs/benchmarks.md.")
    parser.add_argument("name", choices=STUDIES, metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument("--model", metavar="FOLDER", help="[the starter model]")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and lengths [0]")
    parser.add_argument("--plot", action="store_true", help="draw the figure")
    parser.add_argument("--update-page", action="store_true", help="draw it, and put table and figure on the page")
    parser.add_argument("--redraw", action="store_true", help="from the JSON of the last run, without running again")
    parser.add_argument(
        "--tiny", action="store_true", help="hardly any work, to see that it runs; the figures mean nothing"
    )
    parser.add_argument("--result-dir", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    parser.add_argument("--image-dir", type=Path, default=Path("docs/images"), metavar="DIR")
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks.md"), metavar="FILE")
    return parser
