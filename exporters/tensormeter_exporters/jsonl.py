"""The `jsonl` destination: files in the OTLP file format, with one JSON document per line and one signal per file.

The Collector's `otlp_json_file` receiver and `tensormeter import` can read these files. A retried request is written
only once; see `append_once`.
"""

import re
from pathlib import Path
from typing import ClassVar, Final

from tensormeter.disk.private import make_directory
from tensormeter.disk.user_folders import NO_FOLDER, user_data_folder
from tensormeter.errors import SettingsError
from tensormeter.exporter import Accepted, ExporterConfig, Outcome, Request
from tensormeter.otlp.json_lines import encode_line
from tensormeter_exporters.append_once import AppendOnce
from tensormeter_exporters.base import UNCHANGED, FileExporter
from tensormeter_exporters.request_bodies import decoding, decompress

__all__ = ["JsonLinesExporter"]

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


class JsonLinesExporter(FileExporter):
    """The exporter of the `jsonl` destination. It implements `tensormeter.exporter.Exporter`.

    Options:
        directory: Folder for the files. Default: `otlp` in the user's data directory, accessible only to this user.
        max_bytes: Maximum size of a file in bytes, unless a single request is larger. Default: 64 MiB.
    """

    media: ClassVar = UNCHANGED

    def __init__(self, config: ExporterConfig) -> None:
        options = config.options_or(
            directory=str(user_data_folder() / "otlp"),
            max_bytes=str(64 << 20),
        )
        if NO_FOLDER in Path(options["directory"]).parents:
            raise SettingsError(
                f"{config.destination}: this user has no home folder; set {config.destination}.directory"
            )
        super().__init__(Path(options["directory"]).expanduser().absolute())
        self._private = "directory" not in config.options
        if not options["max_bytes"].isdecimal():
            raise SettingsError(f"{config.destination}.max_bytes: expected a number, got {options['max_bytes']!r}")
        self._max_bytes = int(options["max_bytes"])
        self._files = AppendOnce(config.state, self.directory, private=self._private)
        self._numbers: dict[str, int] = {}

    def deliver(self, request: Request) -> Outcome:
        body = decompress(request)
        with decoding(request):
            line = encode_line(request.signal, body)
        if self._private:
            make_directory(self.directory)
        self._files.append(request.id, {self._path(request, len(line)): line})
        return Accepted()

    def _path(self, request: Request, length: int) -> Path:
        """Return the newest file of this signal and spool, or the next file if the newest is full.

        Each spool has separate files, so two agents never write to the same file.
        """
        stem = f"{request.signal}-{self._files.writer}"
        number = self._numbers.get(stem) or max(
            (int(path.stem.rpartition("-")[2]) for path in self.directory.glob(f"{stem}-[0-9]*.jsonl")),
            default=1,
        )
        size = self._files.size(request.id, self._file(stem, number))
        if size and size + length > self._max_bytes:
            number += 1
        self._numbers[stem] = number
        return self._file(stem, number)

    def _file(self, stem: str, number: int) -> Path:
        return self.directory / f"{stem}-{number:04}.jsonl"
