"""What goes between a process and its worker: messages with arrays.

In come a message of plain values and any structure of arrays; out comes the same at the other end of a socket. The
message travels as JSON, the arrays in memory that both ends map and that has no name: nothing of it is left when both
are gone, however they end. The room exists so that neither end need know how the other packs.
"""

import json
import mmap
import os
import socket
import struct
import tempfile
from typing import Any

import numpy as np

from kohort.structures import filled, skeleton

HEADER = struct.Struct("!Q")
ALIGNMENT = 64  # bytes: JAX then takes an array as it lies


class Channel:
    """One end of a socket between two processes that trust each other."""

    def __init__(self, end: socket.socket) -> None:
        """Takes over the socket."""
        self.socket = end

    def send(self, message: dict, arrays: Any = None) -> None:
        """Sends a message of JSON's values, and a structure (dicts, lists, tuples, None) of arrays."""
        leaves: list[np.ndarray] = []

        def placed(array: Any) -> list:
            place = sum(map(_room, leaves))
            leaves.append(np.ascontiguousarray(array).reshape(np.shape(array)))
            return [leaves[-1].dtype.name, leaves[-1].shape, place]

        body = json.dumps({"message": message, "arrays": skeleton(arrays, placed)}).encode()
        memory = _shared_memory(leaves)
        try:
            socket.send_fds(self.socket, [HEADER.pack(len(body))], [memory])
        finally:
            os.close(memory)
        self.socket.sendall(body)

    def receive(self) -> tuple[dict, Any]:
        """Waits for the next message.

        Returns:
            The message, and its arrays: read-only views of the memory in which they came.

        Raises:
            EOFError: If the other end is gone.
        """
        header, descriptors, _, _ = socket.recv_fds(self.socket, HEADER.size, 1)
        try:
            header += self._exactly(HEADER.size - len(header))
            body = json.loads(self._exactly(*HEADER.unpack(header)))
            memory = mmap.mmap(descriptors[0], 0, access=mmap.ACCESS_READ)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

        def mapped(placed: list) -> np.ndarray:
            dtype, shape, place = placed
            return np.ndarray(shape, np.dtype(dtype), memory, place)

        return body["message"], filled(body["arrays"], mapped)

    def _exactly(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            part = self.socket.recv(min(size - len(received), 2**20))
            if not part:
                raise EOFError("The other end of the channel is gone.")
            received += part
        return bytes(received)


def _room(array: np.ndarray) -> int:
    """Returns how many bytes an array takes up in shared memory."""
    return -(-array.nbytes // ALIGNMENT) * ALIGNMENT


def _shared_memory(arrays: list[np.ndarray]) -> int:
    """Returns the descriptor of nameless memory that holds the arrays, one after the other."""
    size = sum(map(_room, arrays)) or ALIGNMENT
    memory = _nameless()
    try:
        os.ftruncate(memory, size)
        with mmap.mmap(memory, size) as mapped:
            place = 0
            for array in arrays:
                np.ndarray(array.shape, array.dtype, mapped, place)[...] = array
                place += _room(array)
    except BaseException:
        os.close(memory)
        raise
    return memory


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("kohort")
    with tempfile.TemporaryFile() as file:  # as good, but for the disk that it may be written to
        return os.dup(file.fileno())
