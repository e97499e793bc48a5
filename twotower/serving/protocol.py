"""BoundedHeaders: HTTP by httptools, with a limit on the headers of a request.

httptools keeps what it has read of a header until its end, however long it is. So a client whose
headers never end could fill the memory.
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Bytes of the request line and headers, without the packet in which they end.
MAX_HEADER_BYTES = 2**16
TOO_LARGE = b"HTTP/1.1 431 Headers Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedHeaders(HttpToolsProtocol):
    """A connection that is answered with 431 and closed if the headers of a request are longer than
    `MAX_HEADER_BYTES`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of the request under way; and whether headers have ended in the packet under way.
        self._reads_headers, self._header_bytes, self._has_ended = True, 0, False

    def data_received(self, data: bytes) -> None:
        """See `HttpToolsProtocol`. Packets in which headers end are not counted, since a body or
        other requests may follow in them."""
        self._has_ended = False
        super().data_received(data)
        if self._has_ended or not self._reads_headers:
            return
        self._header_bytes += len(data)
        if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.transport.write(TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """See `HttpToolsProtocol`."""
        self._reads_headers, self._header_bytes, self._has_ended = False, 0, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """See `HttpToolsProtocol`. The headers of the next request follow."""
        super().on_message_complete()
        self._reads_headers, self._has_ended = True, True
