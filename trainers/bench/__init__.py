"""Speed and memory of every phase of an iteration on this machine, and of other programs beside it.

`sizes` and `models`: models of the published sizes with random weights; `rates`: what the machine's matrix products
reach; `measure`: how one piece of work is timed; `phases`: the pieces, on the code that training runs; `iteration`:
what they add up to; `report`: the results as a table and as JSON; `profile`: where the time of one step goes; `peers`:
other programs.
"""
