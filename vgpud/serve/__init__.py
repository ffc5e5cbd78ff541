"""The asyncio side: sockets, eventfds and the pumps between them and the sans-IO layers."""
