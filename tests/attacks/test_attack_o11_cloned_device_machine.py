"""O11 on the machine: a copied state folder shows itself at the second contact, and no row of either is lost."""

import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.errors import LinkError
from tests.fakes.contact_machine import opened


async def test_attack_o11_a_copy_is_told_from_a_retry_and_both_number_their_rows_apart(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "original").mkdir()
    async with opened(tmp_path / "original", key=key) as original:
        await original.meets()
        await original.outbox.enqueue("results", b"before the copy")
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    server = original.server
    async with (
        opened(tmp_path / "original", key=key, server=server, first_token=10_000) as original,
        opened(tmp_path / "copy", key=key, server=server, first_token=20_000) as copy,
    ):
        await original.meets()
        assert server.clones == []
        await copy.meets()
        assert len(server.clones) == 1, "the same token with another contact id"
        server.set_apart = True
        for machine, name in ((original, b"original"), (copy, b"copy")):
            await machine.meets()
            await machine.outbox.enqueue("results", name)
            await machine.drain.run()
        assert original.outbox.epoch != copy.outbox.epoch
        assert sorted(server.rows.values()) == [b"before the copy", b"copy", b"original"]
        assert server.conflicts == []


@pytest.mark.parametrize("tries", [1, 5])
async def test_attack_o11_a_machine_with_a_bad_link_is_never_taken_for_a_clone(tmp_path, tries):
    async with opened(tmp_path) as machine:
        await machine.meets()
        machine.server.cut_answers = tries
        for _ in range(tries):
            with pytest.raises(LinkError):
                await machine.meets()
            machine.restarted()
        await machine.meets()
        await machine.meets()
        assert machine.server.clones == []
