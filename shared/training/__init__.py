"""Training in a child process, as whoever starts one sees it.

assignment  the file that tells a trainer what to do
runner      the child: started, watched, stopped
resident    a child that stays for further assignments
ends        where trainings stopped, for longer ones that pass through there

The trainer's own side is `worker.trainer`; nothing here loads torch.
"""
