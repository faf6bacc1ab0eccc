"""How fast, how costly and how large transfers are: `python -m benchmarks.transfer --help`.

methods      what is compared, and who of the processes takes part in it
side         one of the processes: a peer with a store that does as it is told, line by line
bare         raw libp2p streams, raw TCP and plain HTTP: what our exchange is compared with
web          the HTTP process: uvicorn with a plain file and with the network role's blob app
training     the trainer's process, which counts its steps
processes    the other end of these processes: orders, answers, CPU time, memory
rounds       the interleaved rounds, and the training slow-down
figures      medians, ratios of pairs, an interval. Pure
report       the figures as text and as JSON
main         the command line
"""
