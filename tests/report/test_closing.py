"""The end that a terminal shows: the verdict, three numbers, a line a rival, and nothing that a name could break."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import HOSTILE, write_run
from rich.console import Console

from spunge import report
from spunge.cli.options import write_line


def test_every_rival_has_a_line_also_one_that_was_not_run(tmp_path: Path) -> None:
    lines = report.ending(report.write(write_run(tmp_path, items=200)).parent)
    assert lines[0].text.startswith("SPUNGE forgot")
    rivals = [line.text for line in lines if line.text.startswith("Against")]
    assert len(rivals) == 5
    assert rivals[2] == "Against unlearning one subset after the other: not run."
    assert [line.text.split(":")[0] for line in lines[1:4]] == ["Forgotten", "Kept", "Better than joint"]
    assert lines[-1].text == "1 warning: see the report"


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    run = write_run(tmp_path, kind="toxicity", groups=len(HOSTILE), items=160, hostile=True)
    text = "".join(line.text for line in report.ending(report.write(run).parent))
    assert not {char for char in text if ord(char) < 32 or char == "\u202e"}


@pytest.mark.parametrize("width", [80, 40])
def test_a_line_too_long_for_the_terminal_goes_on_below(capsys: pytest.CaptureFixture[str], width: int) -> None:
    words = [f"word-{number}" for number in range(60)]
    write_line(Console(force_terminal=True, width=width, color_system=None), " ".join(words), indent=4, at=4)
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines).split() == words
    assert max(len(line) for line in lines) <= width
    assert len(lines[0]) <= width - 4
    write_line(Console(force_terminal=False, width=width), " ".join(words))
    assert capsys.readouterr().out == " ".join(words) + "\n"


def test_colour_is_on_a_terminal_alone_and_not_where_it_is_unwanted(monkeypatch: pytest.MonkeyPatch) -> None:
    for unwanted, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", unwanted)
        console = Console(force_terminal=True, color_system="standard")
        with console.capture() as captured:
            console.print("✗", style="red")
        assert ("\x1b[31m" in captured.get()) is coloured
