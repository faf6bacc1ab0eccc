"""The operator's verbs over a run that is served, and over its ledger.

options  arguments and options that several verbs have in common
errors   what ends a verb, and with which exit code
remote   typed calls to the coordinator, with the admin token
tables   what people see: tables and lines, made from the same values as --format json
looks    workers, assignments, why
orders   ban, unban, drain, undrain, retry, cancel, fail, pause, resume
ledger   ledger verify, ledger entries, backup
"""
