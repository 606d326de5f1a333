"""Where machine code is kept: no HOME, no place to write, a folder of others, damaged files, many starts at once."""

from concurrent.futures import ThreadPoolExecutor

from programs import DRAW, DRAWN, run


def test_without_a_home():
    assert run(DRAW, HOME=None, XDG_CACHE_HOME=None, BIGVOCAB_CACHE_DIR=None) == DRAWN


def test_without_any_place_to_write(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert run(DRAW, BIGVOCAB_CACHE_DIR=str(blocked)) == DRAWN
    assert blocked.read_text() == ""


def test_a_folder_that_others_could_write_is_not_trusted(tmp_path):
    shared = tmp_path / "cache"
    (shared / "kernels").mkdir(parents=True)
    (shared / "kernels").chmod(0o777)
    assert run(DRAW, BIGVOCAB_CACHE_DIR=str(shared)) == DRAWN
    assert not list((shared / "kernels").iterdir())


def test_a_damaged_cache_is_made_anew(tmp_path):
    assert run(DRAW, BIGVOCAB_CACHE_DIR=str(tmp_path)) == DRAWN
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(DRAW, BIGVOCAB_CACHE_DIR=str(tmp_path)) == DRAWN


def test_many_starts_at_once_on_a_cold_cache(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: run(DRAW, BIGVOCAB_CACHE_DIR=str(tmp_path)), range(3)))
    assert results == [DRAWN] * 3
