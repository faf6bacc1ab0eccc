"""The network role: the DHT's bootstrap peer, collecting, and blobs over libp2p and HTTP."""
