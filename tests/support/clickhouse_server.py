"""A ClickHouse to talk to over HTTP: chDB, the engine itself, in this process, behind as much of the HTTP interface as clients use.

    python -m support.clickhouse_server FOLDER [PORT]

prints its port. It ends when its standard input does, so it never outlives a test run. One statement at a time.
"""

import email
import os
import re
import sys
import tempfile
import threading
from email import policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import chdb  # never in the process of a test: a forked child of it hangs

_LOCK = threading.Lock()
_INSERT = re.compile(rb"\s*INSERT\s[^\n]* FORMAT \w+\n")
_FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
_CODE = re.compile(r"Code: (\d+)")


MAX_FIELD = 128 << 10
"""The default of `http_max_field_value_size`."""

TRANSPORT = {
    "query",
    "default_format",
    "query_id",
    "wait_end_of_query",
    "client_protocol_version",
    "session_id",
    "role",
}
"""Parameters of a request that are no settings of the engine."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer
    disable_nagle_algorithm = True

    def do_GET(self):
        self.answer(200, b"Ok.\n")

    def do_POST(self):
        query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.headers.get("Content-Type", "")
        if kind.startswith("multipart/form-data"):  # clients send long parameters in this way
            parts = email.message_from_bytes(b"Content-Type: %s\r\n\r\n%s" % (kind.encode(), body), policy=policy.HTTP)
            fields = {str(part.get_param("name", header="content-disposition")): part for part in parts.iter_parts()}
            body = b""
            query |= {name: part.get_payload(decode=True).decode() for name, part in fields.items()}
        statement = query.get("query", "")
        try:
            if any(len(value.encode()) > MAX_FIELD for name, value in query.items() if name.startswith("param_")):
                raise ValueError("Code: 131. DB::Exception: Field value too long")
            with _LOCK:
                answer = run(statement, body, query)
        except Exception as error:
            code = _CODE.search(str(error))
            self.answer(500, str(error).encode(), {"X-ClickHouse-Exception-Code": code[1] if code else "0"})
        else:
            self.answer(200, *answer)

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body)), "X-ClickHouse-Summary": "{}"} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def run(statement, body, query):
    for name, value in query.items():
        if name in TRANSPORT or name.startswith("param_") or applied.get(name) == value:
            continue
        connection.query(f"USE {value}" if name == "database" else f"SET {name} = '{value}'")
        applied[name] = value
    whole = statement.encode() + b"\n" * bool(statement) + body
    insert = _INSERT.match(whole)
    if insert is not None:
        statement, body = insert[0].decode().strip(), whole[insert.end() :]
        form = _FORMAT.search(statement)
        with tempfile.NamedTemporaryFile() as file:
            file.write(body)
            file.flush()
            connection.query(f"{statement[: form.start()]} FROM INFILE '{file.name}' FORMAT {form[1]}")
        return b"", {}
    text = whole.decode()
    named = _FORMAT.search(text)
    form = named[1] if named else query.get("default_format", "TabSeparated")
    parameters = {name[6:]: value for name, value in query.items() if name.startswith("param_")}
    result = connection.query(text, form, params=parameters) if parameters else connection.query(text, form)
    return result.bytes() or b"", {"X-ClickHouse-Format": form}


if __name__ == "__main__":
    connection = chdb.connect(sys.argv[1])
    applied: dict[str, str] = {}  # each statement that sets a setting takes as long as a small query
    connection.query("SET max_threads = 1")
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
    os._exit(0)  # chDB may hang or crash at the end of an interpreter
