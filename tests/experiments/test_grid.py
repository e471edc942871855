from dataclasses import replace

from coopcli.experiments.grid import Cell, Grid, Variant


def test_the_cells_of_a_grid():
    variants = [Variant(), Variant(csc=True)]
    cells = Grid(("zeroshot", "linear-probe", "coop"), ("a", "b"), (1, None), (1, 2), variants).cells()
    assert len(cells) == len(set(cells)) == 2 * (1 + 4 + 8)
    assert cells[0] == Cell("zeroshot", "a") and all(cell.variant is None for cell in cells if cell.method != "coop")
    assert len({cell.folder for cell in cells}) == len(cells)


def test_cells_that_differ_have_other_folders():
    cell = Cell("coop", "a/b c", 1, 1, Variant())
    others = [replace(cell, model="b c"), replace(cell, shots=None), replace(cell, variant=Variant(init="x"))]
    assert len({one.folder for one in (cell, *others)}) == 4 and "/" not in cell.folder and " " not in cell.folder


def test_cells_of_before_there_was_keep_close_have_the_folders_of_then():
    plain = Cell("coop", "mini", 1, 1, Variant())
    assert (plain.folder, Cell("zeroshot", "mini").folder) == ("coop-mini-1shots-seed1-6481e02f", "zeroshot-mini-9ad640f8")
    close = replace(plain, variant=Variant(keep_close=8.0))
    assert close.folder != plain.folder and close.as_dict()["variant"]["keep_close"] == 8
