"""The files in which exporters remember how far they are: damage in them loses nothing that was written."""

from tensormeter_exporters.append_once import AppendOnce


def test_a_flipped_bit_of_the_state_leaves_the_files_as_they_are(tmp_path):
    folder, state = tmp_path / "out", tmp_path / "state"
    files = AppendOnce(state, folder)
    path = folder / f"log-{files.writer}.jsonl"
    files.append("first", {path: b"first\n"})
    files.append("second", {path: b"second\n"})
    content = (state / "appended.json").read_bytes()
    for at in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[at] ^= 1 << bit
            (state / "appended.json").write_bytes(flipped)
            again = AppendOnce(state, folder)
            other = folder / f"log-{again.writer}.jsonl"
            again.append("third", {other: b"third\n"})
            assert path.read_bytes().startswith(b"first\nsecond\n")
            if other != path:
                other.unlink()
            path.write_bytes(b"first\nsecond\n")


def test_a_state_without_a_checksum_is_used(tmp_path):
    """As earlier versions wrote it."""
    folder, state = tmp_path / "out", tmp_path / "state"
    files = AppendOnce(state, folder)
    path = folder / f"log-{files.writer}.jsonl"
    files.append("first", {path: b"first\n"})
    text = (state / "appended.json").read_text()
    (state / "appended.json").write_text(text[: text.index(', "checksum"')] + "}")
    again = AppendOnce(state, folder)
    again.append("first", {path: b"first\n"})
    assert (again.writer, path.read_bytes()) == (files.writer, b"first\n")
