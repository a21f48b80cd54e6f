"""`fedsim sweep`: many runs from one command.

Read in this order: `grid` (words to points), `folder` (what is written down, and when), `runner`
(the loop), `point` (what a point's process does), `processes` and `ray_pool` (where these are),
`outcome` (what a run left behind), `settings`, `tuning` and `report` (what is made of it).
"""
