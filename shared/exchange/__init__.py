"""How blobs travel: over libp2p streams and over HTTP, from several sources, by the piece."""
