"""A simulated fleet: the real scheduler and lifecycle under a virtual clock.

`hardware` the volunteers' machines; `pieces` the specs; `policies` who gets what; `simulation` the
events, `state` what they change; `bounds` what no schedule can beat; `report` the figures;
`__main__` the command line.
"""
