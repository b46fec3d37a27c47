"""A slab: page-aligned shared memory that holds the image of files, and tensors over places of it.

The slab's layout is the file image, so staging a tensor is one copy, and writing and checksums read straight on. It is
a file of memory without a name: another process gets it by descriptor and reads the same pages.
"""

from __future__ import annotations

import itertools
import mmap
import os
import weakref
from collections.abc import Callable, Mapping

import torch

from atoll.checkpoint.boxes import whole
from atoll.checkpoint.image import PAGE, SAFETENSORS, Image, Place, draw
from atoll.checkpoint.logical import Logical

DTYPES = {name: getattr(torch, dtype) for dtype, name in SAFETENSORS.items()}
_numbers = itertools.count()


class Slab:
    """Reusable memory. `number` names it within its process, `capacity` grows and never shrinks."""

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.length = 0
        self.descriptor = os.memfd_create("atoll-slab", os.MFD_CLOEXEC)
        self._memory: mmap.mmap | None = None
        self._unpin: weakref.finalize[[], Slab] | None = None
        self._image: Image | None = None
        self._places: dict[str, Place] = {}
        weakref.finalize(self, os.close, self.descriptor)

    @property
    def capacity(self) -> int:
        """Bytes of memory."""
        return 0 if self._memory is None else len(self._memory)

    def draw(self, image: Image) -> None:
        """Take on `image`: its headers are written, its places are fixed from here on."""
        self.length = image.length
        memory = self._reserve(image.length)
        if image is not self._image:
            for at, text in image.texts:
                memory[at : at + len(text)] = text
            self._image = image

    def target(self, place: Place) -> torch.Tensor:
        """A place as a tensor of its type and shape over this memory."""
        dtype = getattr(torch, place.logical.dtype)
        if not place.bytes:
            return torch.empty(place.box.shape, dtype=dtype)
        found = torch.frombuffer(self._reserve(self.length), dtype=torch.uint8, count=place.bytes, offset=place.at)
        return found.view(dtype).view(place.box.shape)

    def view(self) -> memoryview:
        """All of the memory, at least `length` bytes rounded up to pages."""
        return memoryview(self._reserve(self.length))

    def pinned(self, unpin: Callable[[], object]) -> None:
        """A device knows the memory by its address: `unpin` is called before the address may stand for other memory."""
        self._unpin = weakref.finalize(self, unpin)
        self._unpin.atexit = False  # the device is gone by then, and lets go of all itself

    # -- one pack of whole tensors ---------------------------------------------------------------------------------------

    def lay_out(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take on the image of one pack that holds `tensors`."""
        pieces = [(one, whole(one.shape)) for one in (logical_of(n, t) for n, t in tensors.items())]
        image = draw([(0, "", pieces)])
        self.draw(image)
        self._places = {place.logical.name: place for place in image.places()}

    def tensor(self, name: str) -> torch.Tensor:
        """The place of one tensor of `lay_out`, as a tensor over this memory."""
        return self.target(self._places[name])

    def _reserve(self, length: int) -> mmap.mmap:
        if self._memory is None or len(self._memory) < length:
            size = max(PAGE, -(-length // PAGE) * PAGE)
            if self._unpin is not None:
                self._unpin()
            os.ftruncate(self.descriptor, size)
            self._memory = mmap.mmap(self.descriptor, size)
            self._image = None
        return self._memory


def logical_of(name: str, tensor: torch.Tensor) -> Logical:
    """A tensor as a whole, by what it is called."""
    return Logical(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
