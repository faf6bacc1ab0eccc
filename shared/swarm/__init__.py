"""The peer-to-peer layer, and the only importer of hivemind.

guards   what keeps strangers' requests and records from harming a node
streams  blobs over raw libp2p streams
daemon   one life of a libp2p daemon and its DHT node; every call bounded
peer     what the programs use: start, watch, announce, look up, fetch, stop
"""
