"""Own data: text of the volunteer's that stays on this machine, and the expert that it is for.

The volunteer names it with `--offer-domain`. A child process reads and tokenises it into
`own/NAME/` of the worker's folder (`prepare.py`), beside the blobs and never among them: blobs are
what others can ask for. The coordinator is told digests and counts (`offering.py`); the assignment
that it makes of them finds its text by digest (`texts.py`). Of what training gives, the expert
alone is named to the coordinator, and two perplexities that a child measures (`measure.py`).
"""
