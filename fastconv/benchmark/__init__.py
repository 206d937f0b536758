"""Timing ours against what users would take instead, so that it cannot flatter.

Started by ``python -m fastconv bench``, or by pytest-benchmark on the folder ``bench``. The method:

- Every result is compared with float64 before it is timed; a wrong one is refused.
- Every implementation of a layer runs in one process, in turn, in blocks of about 28 ms with idle gaps between
  them, in an order that is rotated; minimum and median are kept. Rounds in which others used the cores are repeated,
  or marked.
- The process is bound to as many cores as it has threads before it imports anything; all have equally many threads.
- Operations are counted without taps that fall into the padding.
- One implementation is entered twice, and some layers are timed again in another process, which lays out its memory
  in another way: that tells how far two times of one thing lie apart.
- What the machine can do at best is measured in the same run.

`workloads` has the layers, `implementations` who is timed, `case` what they are held to, `measure` the clock,
`sections` what is measured, `worker` the process it happens in, and `suite` puts it together; `machine` measures
limits, `report` writes the results down, `compare` compares two of them, `cachegrind` counts instructions.
"""
