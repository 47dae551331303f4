"""Types the commands of a page and notes what they print, so that no figure that the documents quote is typed by hand.

python studies/printed.py tutorial gallery                        # a minute or two of a CPU
python studies/printed.py tutorial --model SMOLLM2 --data DATA    # its commands on a real model, with toxigen/ in DATA
python studies/printed.py --rows DIR --data DATA                  # writes posts.jsonl and benign.jsonl alone, its rows

printed/PAGE.txt, or PAGE-smollm2.txt, then holds each command, the day, and what came out. Tests hold what the pages
quote to these files.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

STUDIES = Path(__file__).parent
sys.path.insert(0, str(STUDIES.parent / "tests"))

from documents import ROOT, blocks, commands, furnish  # noqa: E402  # pyright: ignore[reportMissingImports]

REAL = "posts"
"""What commands name that want the real model and its data."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help="as docs/ names them, without .md")
    parser.add_argument("--model", type=Path, help="the directory of SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, help="holds toxigen/annotated_revised.json")
    parser.add_argument("--rows", type=Path, help="an existing directory")
    options = parser.parse_args()
    if (options.model or options.rows) and not options.data:
        parser.error("--data: name the folder that holds toxigen/annotated_revised.json")
    if options.rows:
        write_rows(options.rows, options.data)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        furnish(directory)
        if options.model:
            put_real(directory, options.model, options.data)
        for page in options.pages:
            parts = [
                printed(command.words, directory)
                for command in commands(*blocks(ROOT / "docs" / f"{page}.md", "sh"))
                if any(REAL in word for word in command.words) == bool(options.model)
            ]
            name = f"{page}-smollm2" if options.model else page
            (STUDIES / "printed" / f"{name}.txt").write_text("\n".join(parts), encoding="utf-8")


def printed(words: tuple[str, ...], directory: Path) -> str:
    """Returns a command, the day, and what it printed in a directory."""
    command = [sys.executable, "-m", "spunge", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=True)
    return f"$ {shlex.join(['spunge', *words])}\n# {datetime.date.today()}\n{done.stdout}"


def put_real(directory: Path, model: Path, data: Path) -> None:
    """Puts the real model in its place, and the rows for it."""
    (directory / "SmolLM2-135M-Instruct").rename(directory / "embedded")
    (directory / "SmolLM2-135M-Instruct").symlink_to(model.resolve())
    write_rows(directory, data)


def write_rows(directory: Path, data: Path) -> None:
    """Writes 60 hateful sentences and 50 benign ones about each of three groups."""
    rows = json.loads((data / "toxigen" / "annotated_revised.json").read_text(encoding="utf-8"))
    for name, count, wanted in (("posts", 60, hateful), ("benign", 50, benign)):
        with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for group in ("women", "muslim", "lgbtq"):
                of_group = [row for row in rows if row["target_groups"] == [group] and wanted(row)]
                for row in of_group[:count]:
                    file.write(json.dumps({"text": row["text"].strip(), "group": group}) + "\n")


def hateful(row: dict[str, object]) -> bool:
    """Whether annotators called it that, with hardly a doubt."""
    return row["label"] == "hate" and float(str(row["toxicity_score"])) >= 4


def benign(row: dict[str, object]) -> bool:
    """Whether annotators found no harm in it."""
    return float(str(row["toxicity_score"])) <= 2


if __name__ == "__main__":
    main()
