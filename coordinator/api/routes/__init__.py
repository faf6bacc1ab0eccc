"""The REST interface under /v1, by subject. Handlers are thin: check, one transaction, answer.

context      what handlers share: ledger, identity, settings, clock; who is asking
workers      challenge, register, heartbeat
leasing      the request for work
assignments  acknowledge, heartbeat, submit, release
blobs        where a blob is fetched from and uploaded to
status       the run, public views, health
"""
