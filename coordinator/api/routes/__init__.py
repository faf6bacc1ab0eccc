"""The REST interface under /v1, by subject. Handlers are thin: check, one transaction, answer.

context      what handlers share: ledger, identity, settings, clock; who is asking
workers      challenge, register, heartbeat
leasing      the request for work
assignments  acknowledge, heartbeat, submit, release
blobs        where a blob is fetched from and uploaded to
why          why a worker gets what it gets
admin        what the operator decides
status       the run, public views, health
"""
