"""The peer-to-peer layer, and the only importer of hivemind.

guards         what keeps strangers' requests and records from harming a node
crowds         how many records stand under one key
process        how the daemon's process is to run, is started and ends
daemon         one life of a libp2p daemon and its DHT node; every call bounded
watchdog       one daemon after the other: what dies or hangs is started again
joining        meets the bootstrap peers, and meets them again
announcements  what a peer says in the DHT, within bounds, and what it believes there
peer           what the programs use: start, announce, look up, open streams, stop
"""
