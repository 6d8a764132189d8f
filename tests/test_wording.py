"""The check of wording rejects bad sentences. `make check` applies it to all documents and sources."""

import pytest

from support.wording import check


@pytest.mark.parametrize(
    "sentence",
    [
        "What comes twice is stored once.",
        "The agent retries. Who logs does not wait.",
        "Where the disk is full, log goes on.",
        "Of the metrics.",
        "It waits for whatever comes.",
        "Nobody is let in.",
        "Each thread has a ring of its own.",
        "Values are kept, the last of which\nis shown beside the chart.",
    ],
)
@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("page.md", "Text\n\n{}\n"),
        ("page.md", "- An item\n- {}\n"),
        ("module.py", '"""A module.\n\n{}\n"""\n'),
        ("module.py", 'def f(x):\n    """Do it.\n\n    Args:\n        x: {}\n    """\n'),
        ("module.py", 'raise ValueError(f"""{}""")\n'),
        ("module.py", 'option("--x", help="""{}""")\n'),
    ],
)
def test_a_bad_sentence_fails(path, template, sentence):
    assert check(path, template.format(sentence))


@pytest.mark.parametrize(
    "sentence",
    [
        "The server stores each point once.",
        "What is a run? A run is one training.",
        "Besides metrics, a run has media.",
        "The table shows where each row comes from and who wrote it.",
        "Set `whatever` to 3.",
    ],
)
def test_a_good_sentence_passes(sentence):
    assert check("page.md", f"# Log metrics\n\n{sentence}\n") == []
    assert check("module.py", f'"""A module.\n\n{sentence}\n"""\n') == []


def test_code_blocks_and_comments_are_not_read():
    assert check("page.md", "Text\n\n```sql\nWhere nobody is\n```\n\n<!-- anew -->\n") == []
    assert check("module.py", "# Nobody\nx = 'WHERE run = ?'\n") == []


def test_a_fault_names_its_line():
    (in_table,) = check("page.md", "# Title\n\n| option | default |\n|---|---|\n| `a` | what is left |\n")
    assert (in_table.line, in_table.reason) == (5, "opens with 'what'")
    (in_docstring,) = check("module.py", 'x = 1\n\n\ndef f():\n    """Do it.\n\n    Nobody waits.\n    """\n')
    assert (in_docstring.line, in_docstring.sentence) == (7, "Nobody waits.")
