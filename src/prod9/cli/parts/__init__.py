"""Work that several processes share: ``--part I/N`` of commands, and ``prod9 merge`` that joins the parts."""
