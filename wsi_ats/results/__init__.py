"""What is kept of a slide that was scored, and files for other programs.

``records`` has the records, ``attention`` keeps attention maps, ``plots`` draws, and ``exports`` has a file
for each program that receives results.
"""
