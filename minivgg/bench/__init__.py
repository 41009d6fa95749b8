"""Honest timing, and the races: our convolutions and networks beside PyTorch's, and on a GPU beside cuDNN's.

    worker.py    one contestant: a process that prepares a task, and runs it when it is told to
    race.py      the coordinator: asks every contestant for one sample in turn; medians, quartiles, peak memory
    limits.py    what the machine could do at best: multiply-adds a second, bytes a second
    conv.py      VGG-16's convolutions, pass by pass, every algorithm
    vgg.py       VGG-16 as a whole: forward passes and training steps
    pytorch.py   the same for PyTorch, at its best
    tables.py    a race's record as tables;  pictures.py  and as a picture

    gpu.py       a contestant on a GPU: its clock, its memory;  limits.cu  what the GPU could do at best
    cudnn.py     cuDNN's convolutions, algorithm by algorithm, through its C library
    conv_gpu.py  the convolutions on a GPU, in three kinds of arithmetic;  vgg_gpu.py  the network;  tables_gpu.py

Contestants run in processes of their own, because the threads of one library poison the other's timing: after each
call they spin on their cores for milliseconds, waiting for more. Samples are interleaved, because a machine that other
programs use as well gets faster and slower by the minute, and that must hit all alike. Only ratios from one race mean
anything. A race's record is one JSON-able dict: machine, settings, limits, rows.
"""
