"""From a downloaded data set to LMDB folders for training. In reading order:

parts: what is prepared: images that belong together, their LMDB folders, the user's choices.
tree: the files of a download: in folders, in archives, in MATLAB's .mat files.
recipes: the training and test sets of the field: their files, counts and crops.
sharpness: which sub-images are sharp enough for defocus deblurring.
make: one image: read, check, cut and pack it.
output: the folder of one part: LMDB folders, table of sub-images, record.
run: the whole job, in several processes, which continues after an interruption.
"""
