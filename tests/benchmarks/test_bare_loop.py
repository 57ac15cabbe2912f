"""The yardstick of the throughput benchmark: what it writes are the job's files, so both did the same work."""

import io
import tarfile

from PIL import Image

from benchmarks.bare_loop import bare_loop
from benchmarks.synthetic import textured
from benchmarks.throughput import files_of


def test_the_bare_loop_writes_the_files_of_the_job(prune, without_ray, tiny_llava, write_tar, tmp_path):
    members: list[tuple[str, bytes | dict]] = []
    for number in range(5):
        stream = io.BytesIO()
        Image.fromarray(textured(3, number)).save(stream, "JPEG")
        prompts = {"prompts": [{"id": f"{number}", "prompt": "what is in the picture ?"}]}
        members += [(f"{number}.jpg", stream.getvalue()), (f"{number}.json", prompts)]
    corpus, pruned, bare = write_tar(tmp_path / "corpus.tar", members), tmp_path / "pruned", tmp_path / "bare"
    prune(pruned, corpus=(str(corpus),), shard_size=4, batch_size=2, max_tokens="16")
    with without_ray():  # which gives back the threads that a model on a CPU does without
        done = bare_loop(pruned / "_index", tiny_llava, bare, "16", batch_size=2, decoders=1, shards=[0, 1])
    assert done["images"] == 5
    assert set(done["seconds"]) == {"encode", "score", "select", "write"}
    written = files_of(bare)
    assert len(written) == 8
    assert written == files_of(pruned)
    with tarfile.open(bare / "features" / "shard-00000001.tar") as archive:
        assert len(archive.getnames()) == 2
