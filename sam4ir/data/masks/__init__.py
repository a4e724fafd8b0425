"""Masks of images: how they are stored, written, checked, and exchanged with other programs.

In reading order:

record     the masks of one image as bytes, and how parts of them are read
meta       meta.json of a mask store: provenance, locks, and the processes that write
store      reading a mask store; writer writes one, parts lets processes write that cannot share one
from_sam   records from masks in segment-anything's form, or from atoms
labels     label maps, SPE maps and binary masks as such masks; formats finds and reads whole folders of them
fill       making the records of many images on many processes, as the next three do
importer   masks of other programs; crop: masks of sub-images; control: masks without SAM's knowledge
exporter   masks for other programs
info       a report on a store; verify: a check against its images; pictures: drawings of masks

The geometry itself (runs, atoms, region maps) is in sam4ir/regions.py.
"""
