"""How many volunteers one api process carries: `python -m benchmarks.load --help`.

ground       a temporary run: its folder, its keys, a ledger full of open assignments
database     where the ledger lies: a SQLite file, or a PostgreSQL server of our own
server       the real api role as a process of its own, pinned to one core, and what it uses
wire         a frugal HTTP/1.1 client, so that the player does not slow down what it measures
volunteers   workers with real keys, and the bytes of their requests
measures     latencies by route, counted from when a request was due, and what went wrong
player       the phases: joining, steady load
costs        the server's CPU time for one request of each route
report       the figures as text and as JSON
main         the command line
"""
