"""A bucket of Google Cloud Storage in this process, for other processes to use as the real one.

It speaks as much of the JSON API as TensorFlow, TensorStore and ArrayRecord's reader ask for. The
first two believe that they talk to https://*.googleapis.com: `environment` names this server as the
proxy, which answers CONNECT itself, with a certificate that it names as trusted. ArrayRecord's
reader has no place for a certificate, but a variable for an emulator's address.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import itertools
import json
import pathlib
import re
import ssl
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator

NAME = 'bucket'
CERTIFICATE = pathlib.Path(__file__).with_suffix('.pem')
WRITING = ('POST', 'PUT', 'PATCH', 'DELETE')


@dataclasses.dataclass
class Bucket:
    """What the bucket `gs://bucket` holds, and what was asked of it.

    Attributes:
        objects: content and generation by name.
        requests: `(method, name of the object, token)`, in order.
        port: of the server.
        watch: called with method and name of the object before it is done what they ask for.
    """

    objects: dict[str, tuple[bytes, int]] = dataclasses.field(default_factory=dict)
    requests: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    port: int = 0
    watch: Callable[[str, str], None] = lambda method, name: None

    def environment(self, token: str = 'somebody') -> dict[str, str]:
        """What a process needs in its environment to find this bucket, and be known by `token`."""
        return {
            'https_proxy': f'http://127.0.0.1:{self.port}',
            'no_proxy': '127.0.0.1,localhost',
            'CURL_CA_BUNDLE': str(CERTIFICATE),
            'TENSORSTORE_CA_BUNDLE': str(CERTIFICATE),
            'CLOUD_STORAGE_EMULATOR_ENDPOINT': f'http://127.0.0.1:{self.port}',
            'GOOGLE_AUTH_TOKEN_FOR_TESTING': token,
            'NO_GCE_CHECK': 'true',
        }

    def names(self, prefix: str = '') -> set[str]:
        """Names of the objects below a prefix, without those that only mark a folder."""
        return {n for n in self.objects if n.startswith(prefix) and not n.endswith('/')}

    def get(self, prefix: str, folder: pathlib.Path) -> None:
        """Copies the objects below a prefix into a local folder."""
        for name in self.names(f'{prefix}/'):
            path = folder / name.removeprefix(f'{prefix}/')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.objects[name][0])

    def put(self, folder: pathlib.Path, prefix: str) -> None:
        """Copies the files of a local folder into the bucket."""
        for path in folder.rglob('*'):
            if path.is_file():
                name = f'{prefix}/{path.relative_to(folder).as_posix()}'
                self.objects[name] = (path.read_bytes(), 1)


@contextlib.contextmanager
def served() -> Iterator[Bucket]:
    """An empty bucket, served until the block ends."""
    bucket = Bucket()
    handler = type('Handler', (_Handler,), {'bucket': bucket})
    server = _Server(('127.0.0.1', 0), handler)
    bucket.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Says nothing of clients that were killed or hang up."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = 'HTTP/1.1'
    bucket: Bucket
    lock = threading.Lock()
    generations = itertools.count(2)
    uploads: dict[str, tuple[str, dict, bytearray]] = {}  # noqa: RUF012
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secure.load_cert_chain(CERTIFICATE)

    def do_CONNECT(self):
        """Becomes the host that the client wants to be connected to."""
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        self.connection = self.secure.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile('rb')
        self.wfile = self.connection.makefile('wb', buffering=0)
        self.close_connection = False

    def log_message(self, *arguments):
        """Says nothing."""

    def _any(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self._body()
        path = url.path.removeprefix('/storage/v1')
        with self.lock:
            for pattern, answer in self.ROUTES:
                if match := re.fullmatch(pattern, path):
                    names = [urllib.parse.unquote(group) for group in match.groups()]
                    token = self.headers.get('Authorization', '').removeprefix('Bearer ')
                    wanted = names[0] if names else query.get('name', query.get('prefix', ''))
                    self.bucket.requests.append((self.command, wanted, token))
                    self.bucket.watch(self.command, wanted)
                    answer(self, query, body, *names)
                    return
        self._error(404)

    def _body(self):
        if self.headers.get('Transfer-Encoding') != 'chunked':  # which overrules the length
            return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        body = b''
        while size := int(self.rfile.readline() or b'0', 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815

    def _describe(self, query, body):
        self._json({'kind': 'storage#bucket', 'name': NAME, 'location': 'US'})

    def _layout(self, query, body):
        flat = {'enabled': False}
        self._json({'kind': 'storage#storageLayout', 'hierarchicalNamespace': flat})

    def _list(self, query, body):
        prefix, delimiter = query.get('prefix', ''), query.get('delimiter', '')
        items, folders = [], set()
        for name in sorted(self.bucket.objects, key=str.encode):
            if not name.startswith(prefix):
                continue
            if name < query.get('startOffset', '') or name >= query.get('endOffset', '\U0010ffff'):
                continue
            head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else ('', '', '')
            if cut:
                folders.add(prefix + head + delimiter)
            else:
                items.append(name)
        # One page holds as many names as are asked for, of both kinds in one order.
        both = sorted([*((n, True) for n in folders), *((n, False) for n in items)])
        start = int(query.get('pageToken') or 0)
        stop = start + min(int(query.get('maxResults') or 1000), 1000)
        page = {
            'kind': 'storage#objects',
            'items': [self._metadata(name) for name, folder in both[start:stop] if not folder],
            'prefixes': [name for name, folder in both[start:stop] if folder],
        }
        self._json({**page, **({'nextPageToken': str(stop)} if stop < len(both) else {})})

    def _object(self, query, body, name):
        if name not in self.bucket.objects:
            self._error(404)
        elif self._refused(query, name):
            self._error(412)
        elif self.command == 'DELETE':
            del self.bucket.objects[name]
            self._answer(204)
        elif query.get('alt') == 'media':
            self._content(query, body, name)
        else:
            self._json(self._metadata(name))

    def _content(self, query, body, name):
        if name not in self.bucket.objects:
            self._error(404)
            return
        content, generation = self.bucket.objects[name]
        headers = {
            'x-goog-generation': str(generation),
            'x-goog-hash': f'md5={_md5(content)}',
            'x-goog-stored-content-length': str(len(content)),
        }
        span = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
        if not span:
            self._answer(200, content, headers)
            return
        first, last = span.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            self._error(416)
            return
        headers['Content-Range'] = f'bytes {start}-{stop - 1}/{len(content)}'
        self._answer(206, content[start:stop], headers)

    def _rewrite(self, query, body, name, bucket, target):
        if name not in self.bucket.objects:
            self._error(404)
            return
        self._store(target, self.bucket.objects[name][0])
        self._json({'kind': 'storage#rewriteResponse', 'done': True})

    def _upload(self, query, body):
        if self.command == 'PUT' or 'upload_id' in query:
            self._part(query, body)
        elif query['uploadType'] == 'resumable':
            number = str(next(self.generations))
            self.uploads[number] = (query['name'], query, bytearray())
            here = f'https://www.googleapis.com{self.path}&upload_id={number}'
            self._answer(200, headers={'Location': here})
        elif self._refused(query, query['name']):
            self._error(412)
        else:
            self._store(query['name'], body)
            self._json(self._metadata(query['name']))

    def _part(self, query, body):
        name, first, held = self.uploads[query['upload_id']]
        held += body
        whole = re.fullmatch(r'bytes (?:\d+-\d+|\*)/(\d+)', self.headers.get('Content-Range', ''))
        if whole is None or len(held) < int(whole[1]):
            headers = {'Range': f'bytes=0-{len(held) - 1}'} if held else {}
            self._answer(308, headers=headers)
        elif self._refused(first, name):
            self._error(412)
        else:
            self._store(name, bytes(held))
            self._json(self._metadata(name))

    def _store(self, name, content):
        self.bucket.objects[name] = (content, next(self.generations))

    def _refused(self, query, name):
        """Whether the object is not of the generation that the client says it is (0: absent)."""
        wanted = query.get('ifGenerationMatch')
        return wanted is not None and int(wanted) != self.bucket.objects.get(name, (b'', 0))[1]

    def _metadata(self, name):
        content, generation = self.bucket.objects[name]
        return {
            'kind': 'storage#object',
            'name': name,
            'bucket': NAME,
            'size': str(len(content)),
            'generation': str(generation),
            'md5Hash': _md5(content),
            'updated': '2026-01-01T00:00:00.000Z',
            'timeCreated': '2026-01-01T00:00:00.000Z',
        }

    def _json(self, value):
        self._answer(200, json.dumps(value).encode(), {'Content-Type': 'application/json'})

    def _error(self, code):
        body = {'error': {'code': code, 'message': f'{self.command} {self.path}'}}
        self._answer(code, json.dumps(body).encode(), {'Content-Type': 'application/json'})

    def _answer(self, code, body=b'', headers=()):
        self.send_response(code)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        if code != 204:
            self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    ROUTES = (
        (f'/b/{NAME}', _describe),
        (f'/b/{NAME}/storageLayout', _layout),
        (f'/b/{NAME}/o', _list),
        (f'/b/{NAME}/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)', _rewrite),
        (f'/b/{NAME}/o/([^/]+)', _object),
        (f'/upload/storage/v1/b/{NAME}/o', _upload),
        (f'/{NAME}/(.+)', _content),
    )


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()
