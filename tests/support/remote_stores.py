"""A store behind `pyarrow.fs` that does wrong what real ones do: fails, loses, flips, hangs, gives little at once."""

import io
import threading

import pyarrow as pa
from pyarrow import fs


class Flaky(fs.FileSystemHandler):
    """`inner`, but: the next `fail` calls fail, the next `lose` files end early, and so on."""

    def __init__(self, inner):
        self.inner, self.written = inner, []
        self.fail = self.lose = 0
        self.at_once, self.flip, self.keeps = None, False, False
        self.free, self.hanging = threading.Event(), threading.Event()
        self.free.set()

    def _call(self):
        if not self.free.is_set():
            self.hanging.set()
            self.free.wait(30)
        if self.fail > 0:
            self.fail -= 1
            raise OSError("SlowDown: please reduce your request rate")

    def get_type_name(self):
        return "flaky"

    def normalize_path(self, path):
        return path

    def get_file_info(self, paths):
        self._call()
        return self.inner.get_file_info(paths)

    def get_file_info_selector(self, selector):
        self._call()
        return self.inner.get_file_info(selector)

    def create_dir(self, path, recursive):
        self.inner.create_dir(path, recursive=recursive)

    def delete_dir(self, path):
        if self.keeps:
            raise OSError("AccessDenied")
        self.inner.delete_dir(path)

    def delete_file(self, path):
        if self.keeps:
            raise OSError("AccessDenied")
        self.inner.delete_file(path)

    def open_input_file(self, path):
        self._call()
        with self.inner.open_input_file(path) as source:
            data = bytearray(source.read())
        if self.flip and path.endswith(".safetensors"):
            data[-1] ^= 1
        return pa.PythonFile(_Little(bytes(data), self.at_once), mode="r")

    def open_output_stream(self, path, metadata):
        self._call()
        self.written.append(path)
        sink = self.inner.open_output_stream(path)
        if self.lose > 0:
            self.lose -= 1
            return pa.PythonFile(_Losing(sink), mode="w")
        return sink

    def _unused(self, *_args):
        raise NotImplementedError

    delete_dir_contents = delete_root_dir_contents = move = copy_file = open_input_stream = open_append_stream = _unused


class _Little(io.BytesIO):
    """Gives `at_once` bytes at most."""

    def __init__(self, data, at_once):
        super().__init__(data)
        self._at_once = at_once

    def read(self, size=-1):
        whole = size is None or size < 0
        return super().read(size if whole or self._at_once is None else min(size, self._at_once))


class _Losing(io.RawIOBase):
    """Says that it took all, and drops the last byte of each piece."""

    def __init__(self, sink):
        self._sink = sink

    def writable(self):
        return True

    def write(self, data):
        self._sink.write(bytes(data)[:-1])
        return len(data)

    def close(self):
        if not self.closed:
            self._sink.close()
        super().close()
