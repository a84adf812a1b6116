# SPDX-License-Identifier: Apache-2.0
"""Documents and figures follow from eval/results: the check passes on this checkout, and on a copy of it
finds everything that does not; verdicts on the papers' claims are those of the numbers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from compressai_sga.tasks import provenance

pytest.importorskip("bjontegaard", reason="BD-rates need the package bjontegaard")

from papers import claim, claims, documents  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
EVAL = ROOT / "eval"
DOCUMENTS = ("README.md", "eval/RESULTS.md", "eval/README.md")


@pytest.fixture
def copy(tmp_path) -> Path:
    """What the check reads of a checkout."""
    others = shutil.ignore_patterns("pictures", "*.jsonl", "*.lock", "*.html")
    for name in ("results", "figures"):
        shutil.copytree(EVAL / name, tmp_path / "eval" / name, ignore=others)
    for name in DOCUMENTS:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def edit(path: Path, pattern: str, replacement: str) -> None:
    """Change exactly one place of a file."""
    text, count = re.subn(pattern, replacement, path.read_text(encoding="utf-8"), count=1, flags=re.S)
    assert count == 1
    path.write_text(text, encoding="utf-8")


# --- This checkout -------------------------------------------------------------------------------------


def test_documents_and_figures_are_up_to_date():
    assert documents.check() == [], "run python eval/run.py tables"


def test_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(documents, "write", pytest.fail)  # --check must not write
    monkeypatch.setattr(documents, "check", lambda: [])
    assert documents.main(["--check"]) == 0
    monkeypatch.setattr(documents, "check", lambda: ["README.md: summary is out of date"])
    assert documents.main(["--check"]) == 1
    assert "README.md: summary is out of date\n" in capsys.readouterr().err


def test_results_stand_in_blocks_and_not_in_the_text():
    """No percentage, quality, size or time outside of what is generated."""
    for name in ("eval/RESULTS.md", "eval/README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for block in (r"<!-- results:.*?<!-- /results -->", r"^```.*?^```$", r"`[^`\n]*`"):
            text = re.sub(block, "", text, flags=re.S | re.M)
        units = r"%|dB|bpp|bits?\b|bytes|ms\b|s\b|seconds|times\b"
        assert re.findall(rf"[^\n]*\d[\d.,]*\s?(?:{units})[^\n]*", text) == [], name


# --- A copy ----------------------------------------------------------------------------------------------


def test_a_changed_number_is_found_and_mended(copy):
    path = copy / "eval" / "results" / "universal.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["cells"]["mbt2018-mean-uq-small-1"]["values"]["gap_percent"]["mean"] = 1.5
    path.write_text(json.dumps(content), encoding="utf-8")
    problems = [
        "README.md: summary is out of date",
        "eval/RESULTS.md: summary is out of date",
        "eval/RESULTS.md: universal is out of date",
        "eval/README.md: claims is out of date",
        "eval/figures: universal.png is out of date",
    ]
    assert documents.check(copy) == problems
    before = {name: (copy / name).read_text(encoding="utf-8") for name in DOCUMENTS}
    documents.write(copy)
    assert documents.check(copy) == []
    after = {name: (copy / name).read_text(encoding="utf-8") for name in DOCUMENTS}
    assert all(after[name] != before[name] for name in DOCUMENTS)
    assert "| no: the gap is larger than half a percent. |" in after["eval/README.md"]
    assert "largest gap of test to training loss +1.50 %" in after["README.md"]


def test_a_hand_edited_block_is_found_and_mended(copy):
    path = copy / "eval" / "RESULTS.md"
    text = path.read_text(encoding="utf-8")
    edit(path, r"(<!-- results:curve -->.*?)-12\.\d %", r"\1-13.0 %")
    assert documents.check(copy) == ["eval/RESULTS.md: curve is out of date"]
    documents.write(copy)
    assert path.read_text(encoding="utf-8") == text


def test_what_is_outside_of_blocks_stays(copy):
    path = copy / "README.md"
    path.write_text("In front.\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    assert documents.check(copy) == []
    documents.write(copy)
    assert path.read_text(encoding="utf-8") == text


def test_a_missing_and_an_unknown_block_are_found(copy):
    path = copy / "eval" / "RESULTS.md"
    edit(path, r"<!-- results:rdp -->.*?<!-- /results -->", "")
    edit(path, r"# Results\n", "# Results\n<!-- results:dreamt -->\n| 1 |\n<!-- /results -->\n")
    missing, unknown = documents.check(copy)
    assert missing.startswith("eval/RESULTS.md: rdp is missing; add the lines <!-- results:rdp -->")
    assert unknown.startswith("eval/RESULTS.md: dreamt is unknown; remove it")
    documents.write(copy)  # neither can be mended, and nothing is lost
    assert documents.check(copy) == [missing, unknown] and "| 1 |" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("pattern", "replacement", "said"),
    [
        (r"<!-- results:curve -->(.*?)<!-- /results -->", r"<!-- results:curve -->\1", "not closed"),
        (r"<!-- results:curve -->", r"", "no partner"),
        (r"<!-- results:curve -->", r"<!-- results:methods -->", "twice"),
    ],
)
def test_markers_that_are_no_pairs_are_found(copy, pattern, replacement, said):
    path = copy / "eval" / "RESULTS.md"
    edit(path, pattern, replacement)
    text = path.read_text(encoding="utf-8")
    (problem,) = documents.check(copy)
    assert problem.startswith("eval/RESULTS.md: ") and said in problem
    documents.write(copy)
    assert path.read_text(encoding="utf-8") == text


def test_missing_results_are_named(copy):
    (copy / "eval" / "results" / "step-time.json").unlink()
    problems = documents.check(copy)
    assert any("step-time cannot be made: FileNotFoundError" in line for line in problems)
    assert any(
        "no file step-time.json" in line and "run `python eval/run.py step-time`" in line for line in problems
    )
    assert not [line for line in problems if "out of date" in line]


def test_figures_are_known_by_what_they_were_drawn_from(copy):
    folder = copy / "eval" / "figures"
    with Image.open(folder / "samples.png") as image:
        image.save(folder / "samples.png")  # the same pixels without a word about them
    (folder / "curve.png").write_bytes((folder / "universal.png").read_bytes())
    (folder / "refine-curve.png").unlink()
    (folder / "hfd-crops.png").unlink()
    assert documents.check(copy) == [
        "eval/figures: refine-curve.png is missing",
        "eval/figures: samples.png is out of date",
        "eval/figures: hfd-crops.png is missing; run `python eval/run.py hfd`",
        "eval/figures: curve.png is of no evaluation in eval/papers/evaluations.py",
    ]


def test_a_figure_says_what_it_was_drawn_from(tmp_path):
    sources = [tmp_path / "b.json", tmp_path / "a.json"]
    for path in sources:
        path.write_text(path.name)
    path = tmp_path / "figures" / "f.png"
    provenance.save_figure(provenance.plt.figure(figsize=(2, 1), dpi=50), path, sources)
    said = provenance.drawn_from(path)
    assert said == provenance.digest(sources[::-1]) and said.startswith("a.json ") and ", b.json " in said
    with Image.open(path) as image:
        assert image.size == (100, 50)
    sources[0].write_text("other")
    assert provenance.digest(sources) != said
    Image.new("RGB", (2, 2)).save(path)
    assert provenance.drawn_from(path) == ""


# --- Claims -------------------------------------------------------------------------------------------------


def test_a_verdict_follows_from_the_results(tmp_path):
    def judged(agrees, why="so it is."):
        return claim.Claim("It falls.", "c3", "python x.py", lambda r: "2 %", lambda r: agrees, why).row(
            tmp_path
        )

    assert judged(True).cells() == ["It falls.", "`python x.py`", "2 %", "yes"]
    assert judged(False).cells()[-1] == "no: so it is."
    assert judged("partly").cells()[-1] == "partly: so it is."
    with pytest.raises(ValueError, match="nobody says why 'It falls.' is 'no'"):
        judged(False, "")
    with pytest.raises(ValueError, match="no verdict"):
        judged("perhaps")
    with pytest.raises(ValueError, match="no paper 'c4'"):
        claim.Claim("", "c4", "", str, bool).row(tmp_path)


def test_every_paper_has_a_claim_or_waits_for_its_results():
    judged = claims.rows(EVAL / "results")
    waiting = {"realistic": EVAL / "results" / "critic.json"}
    for paper in claim.PAPERS:
        rows = [row for row in judged if row.paper == paper]
        assert rows or not waiting[paper].is_file(), paper


def test_a_claim_without_results_has_no_row(tmp_path, monkeypatch):
    rows = [claim.Claim(f"{name}", "c3", "", str, bool, needs=f"{name}.json") for name in ("a", "b")]
    (tmp_path / "a.json").touch()
    monkeypatch.setattr(claims, "CLAIMS", tuple(rows))
    monkeypatch.setattr(claims, "JUDGED", (lambda r: [claim.Row("c", "hfd", "", "", "yes")],))
    assert [row.claim for row in claims.rows(tmp_path)] == ["a", "c"]
    assert claims.table(tmp_path).startswith("2 claims. Agrees: 2 yes.\n\n### Kim")
