"""What is found out about a VM, and every reason for which one is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ftd.testing.fake_qmp import UUID, FakeQemu
from ftd.vm.discovery import Backend, MappedRange, Vm, discover, mappings
from ftd.vm.errors import CannotProtect, QmpClosed, QmpRefused

SIZE = 1 << 20

#: What ``query-block`` of QEMU 7.2 says of media, as far as it matters.
LOCAL = {"ro": False, "drv": "raw", "file": "/vm/disk.raw", "node-name": "#block1"}
NBD = {"ro": False, "drv": "raw", "file": "nbd+unix://?socket=/run/nbd", "node-name": "#block2"}
NBD_NODE = NBD | {"drv": "nbd", "node-name": "#block3"}


def maps_line(start: int, end: int, offset: int, path: str, inode: int, flags: str = "rw-s") -> str:
    """A line of ``/proc/PID/maps``."""
    return f"{start:x}-{end:x} {flags} {offset:08x} 00:1b {inode}                    {path}\n"


class DiscoveryTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.proc = self.directory / "proc"
        self.backends = [self.new_backend("ram1"), self.new_backend("ram0")]
        self.qemu = FakeQemu(Clock(), backends=self.backends, cpus=2)

    def new_backend(self, name: str, size: int = SIZE) -> Backend:
        """With its file, which takes no room."""
        path = self.directory / name
        path.touch()
        os.truncate(path, size)
        return Backend(name, size, str(path))

    def start(self, standby: bool = False) -> Deferred[Vm]:
        """Let it be found out, as far as that goes at once."""
        qmp = self.qemu.connect()
        finding: Deferred[Vm] = discover(qmp, standby=standby, proc=self.proc)
        self.qemu.pump()
        # QEMU serves one at a time.
        self.addCleanup(qmp.hang_up)
        if finding.called:
            qmp.hang_up()
            self.qemu.pump()
        return finding

    def found(self, standby: bool = False) -> Vm:
        """What is found out."""
        return self.successResultOf(self.start(standby))

    def refused(self) -> str:
        """Why it cannot be protected."""
        return str(self.failureResultOf(self.start(), CannotProtect).value)

    def new_process(self, pid: int, maps: str, group: int | None = None) -> None:
        """A process, or a thread of the process ``group``, as the kernel shows it."""
        (self.proc / str(pid)).mkdir(parents=True)
        (self.proc / str(pid) / "maps").write_text(maps)
        (self.proc / str(pid) / "status").write_text(f"Name:\tqemu\nTgid:\t{group or pid}\nNgid:\t0\n")

    def maps_of(self, *backends: Backend) -> str:
        """The memory of a process that has the backends in it."""
        return "".join(
            maps_line(at << 32, (at << 32) + backend.size, 0, backend.path, os.stat(backend.path).st_ino)
            for at, backend in enumerate(backends, start=1)
        )


class VmTests(DiscoveryTestCase):
    def test_what_a_vm_is_made_of(self) -> None:
        self.qemu.add_device("net0", "virtio-net-pci")
        self.qemu.add_device("device[0]", "virtio-rng-pci", where="peripheral-anon")
        self.assertEqual(
            self.found(),
            Vm(
                pid=4242,
                uuid=UUID,
                version="7.2.22",
                machine="pc-i440fx-7.2",
                cpus=2,
                backends=(self.backends[1], self.backends[0]),
                devices=("device[0] virtio-rng-pci", "net0 virtio-net-pci"),
                run_state="running",
            ),
        )
        self.assertEqual(self.found().ram_bytes, 2 * SIZE)

    def test_a_fingerprint_tells_what_cannot_take_over_from_one_another(self) -> None:
        vm = self.found()
        self.assertEqual(len(vm.fingerprint), 16)
        first, second = vm.backends
        others = [
            attrs.evolve(vm, uuid=UUID.replace("1", "2")),
            attrs.evolve(vm, machine="pc-q35-7.2"),
            attrs.evolve(vm, cpus=3),
            attrs.evolve(vm, backends=(first,)),
            attrs.evolve(vm, backends=(first, attrs.evolve(second, size=2 * SIZE))),
            attrs.evolve(vm, backends=(first, attrs.evolve(second, id="ram2"))),
            attrs.evolve(vm, devices=("net0 e1000",)),
        ]
        self.assertEqual(len({each.fingerprint for each in (vm, *others)}), len(others) + 1)

    def test_a_fingerprint_does_not_depend_on_the_host(self) -> None:
        vm = self.found()
        moved = tuple(attrs.evolve(backend, path="/elsewhere") for backend in vm.backends)
        other = attrs.evolve(vm, pid=1, version="10.0.2", backends=moved, run_state="inmigrate")
        self.assertEqual(vm.fingerprint, other.fingerprint)

    def test_a_standby_may_wait_for_its_state_and_a_primary_may_not(self) -> None:
        self.qemu.run_state = "inmigrate"
        self.assertEqual(self.found(standby=True).run_state, "inmigrate")
        self.assertIn("without -incoming", self.refused())

    def test_a_qemu_that_dies_meanwhile(self) -> None:
        self.qemu.hold("query-uuid")
        finding = self.start()
        self.qemu.die()
        self.qemu.pump()
        self.failureResultOf(finding, QmpClosed)

    def test_what_qemu_refuses_is_not_hidden(self) -> None:
        self.qemu.replies["query-memdev"] = QmpRefused("query-memdev", "GenericError", "no")
        self.failureResultOf(self.start(), QmpRefused)


class ProcessTests(DiscoveryTestCase):
    """Which process QEMU is."""

    def test_who_opened_the_socket_if_it_has_the_ram(self) -> None:
        self.new_process(4242, self.maps_of(*self.backends))
        self.new_process(4243, "", group=77)
        self.new_process(77, self.maps_of(*self.backends))
        self.assertEqual(self.found().pid, 4242)

    def test_whose_thread_a_cpu_is_if_somebody_else_opened_the_socket(self) -> None:
        self.new_process(4242, self.maps_of(self.backends[0]))
        self.new_process(4243, "", group=77)
        self.new_process(77, self.maps_of(*self.backends))
        self.assertEqual(self.found().pid, 77)

    def test_who_opened_the_socket_if_nobody_can_be_seen_to_have_the_ram(self) -> None:
        self.new_process(4242, "")
        self.new_process(4243, "", group=77)
        self.assertEqual(self.found().pid, 4242)

    def test_nobody(self) -> None:
        self.qemu.pid = 0
        self.assertEqual(self.found().pid, 0)


class RamTests(DiscoveryTestCase):
    def test_ram_that_is_not_in_a_file(self) -> None:
        self.qemu.qom["/objects"]["ram0"] = ("child<memory-backend-ram>", "")
        why = self.refused()
        self.assertIn("'ram0' (memory-backend-ram)", why)
        self.assertIn("-object memory-backend-file,id=ram0,size=SIZE,mem-path=/dev/shm/NAME,share=on", why)

    def test_ram_that_is_not_shared(self) -> None:
        self.qemu.backends[0]["share"] = False
        self.assertIn("'ram1' is not shared (share=off); start QEMU with", self.refused())

    def test_ram_in_no_backend(self) -> None:
        self.qemu.base_memory += SIZE
        self.assertIn(f"{SIZE} of {3 * SIZE} bytes of the guest's RAM are in no memory backend", self.refused())

    def test_plugged_ram_counts_too(self) -> None:
        self.qemu.plugged_memory = 1
        self.assertIn("1 of", self.refused())

    def test_backends_that_are_no_ram_hurt_nobody(self) -> None:
        self.qemu.base_memory -= SIZE
        self.assertEqual(self.found().ram_bytes, 2 * SIZE)

    def path_of_ram0(self, path: str) -> str:
        """Why ``path`` will not do."""
        self.qemu.qom["/objects/ram0"]["mem-path"] = ("string", path)
        return self.refused()

    def test_a_mem_path_that_is_a_directory(self) -> None:
        self.assertIn(f"name a file: mem-path={self.directory}/NAME", self.path_of_ram0(f"{self.directory}/"))

    def test_a_mem_path_that_is_gone(self) -> None:
        self.assertIn("(No such file or directory); it was deleted", self.path_of_ram0(f"{self.directory}/gone"))

    def test_a_mem_path_that_is_relative(self) -> None:
        self.assertIn("'ram' of the guest's RAM 'ram0' is relative", self.path_of_ram0("ram"))

    def test_a_mem_path_that_is_no_file(self) -> None:
        self.assertIn("is no file", self.path_of_ram0("/dev/null"))

    def test_a_mem_path_that_two_have(self) -> None:
        self.assertIn("the same mem-path", self.path_of_ram0(self.backends[0].path))

    def test_a_file_that_was_cut(self) -> None:
        os.truncate(self.backends[0].path, SIZE - 1)
        self.assertIn(f"has {SIZE - 1} bytes, but the guest's RAM 'ram1' {SIZE}", self.refused())

    def test_a_part_of_a_file(self) -> None:
        self.qemu.qom["/objects/ram0"]["offset"] = ("int", 4096)
        self.assertIn("offset=4096", self.refused())
        self.qemu.qom["/objects/ram0"]["offset"] = ("int", 0)
        self.found()


class MigrationTests(DiscoveryTestCase):
    def test_a_device_that_cannot_be_saved(self) -> None:
        self.qemu.migration = {"blocked-reasons": ["'peer mode' in device 'ivshmem'", "another"]}
        self.assertIn("state: 'peer mode' in device 'ivshmem'; another; start it without", self.refused())

    def test_a_qemu_that_always_saves_all_ram(self) -> None:
        del self.qemu.capabilities["x-ignore-shared"]
        self.assertIn("QEMU 7.2.22 cannot leave shared RAM out", self.refused())


class DiskTests(DiscoveryTestCase):
    def add_disk(self, medium: dict[str, Any] | None, device: str = "", name: str = "") -> None:
        """What ``query-block`` says of a disk."""
        disk: dict[str, Any] = {"device": name, "removable": False, "type": "unknown"}
        self.qemu.block.append(
            disk | ({"qdev": device} if device else {}) | ({"inserted": medium} if medium is not None else {})
        )

    def test_local_disks_are_refused_by_name(self) -> None:
        self.add_disk(LOCAL, "/machine/peripheral/vd0/virtio-backend")
        self.add_disk(LOCAL | {"file": "/vm/other"}, name="virtio1")
        why = self.refused()
        self.assertIn("/machine/peripheral/vd0/virtio-backend (/vm/disk.raw), virtio1 (/vm/other); make them", why)
        self.assertIn("share-rw=on", why)

    def test_what_is_only_read_may_be_local(self) -> None:
        self.add_disk(LOCAL | {"ro": True}, "vd0")
        self.add_disk(None, "cd0")
        self.found()

    def test_what_another_host_serves_may_be_written(self) -> None:
        self.qemu.nodes = [NBD, NBD_NODE]
        self.add_disk(NBD, "vd0")
        self.add_disk(NBD_NODE, "vd1")
        self.found()

    def test_a_name_alone_is_no_server(self) -> None:
        self.qemu.nodes = [NBD | {"drv": "file"}]
        self.add_disk(NBD, "vd0")
        self.assertIn("vd0 (nbd+unix:", self.refused())

    def test_a_server_that_is_only_read_does_not_make_a_disk_shared(self) -> None:
        self.qemu.nodes = [NBD_NODE | {"ro": True}]
        self.add_disk(NBD, "vd0")
        self.refused()

    def test_layers_are_followed_to_where_is_written(self) -> None:
        nbd = '{"driver": "nbd", "server.type": "unix"}'
        self.add_disk(LOCAL | {"file": f'json:{{"driver": "qcow2", "file": {{"driver": "raw", "file": {nbd}}}}}'}, "a")
        self.add_disk(LOCAL | {"file": f"json:{nbd}"}, "b")
        self.found()
        self.add_disk(
            LOCAL | {"file": f'json:{{"driver": "qcow2", "backing": {nbd}, "file": {{"driver": "file"}}}}'}, "c"
        )
        self.assertIn("disks that the standby does not have: c (json:", self.refused())

    def test_what_cannot_be_followed_is_refused(self) -> None:
        for file in ("json:{", "json:[]", 'json:{"file": "node"}', "json:" + '{"file":' * 50 + "1" + "}" * 50):
            self.qemu.block.clear()
            self.add_disk(LOCAL | {"file": file}, "vd0")
            self.assertIn("vd0", self.refused())

    def test_a_disk_may_be_said_to_be_shared(self) -> None:
        self.add_disk(LOCAL, "/machine/peripheral/vd0")
        self.add_disk(LOCAL, "vd1")
        self.qemu.add_device("vd0", "virtio-blk-pci", share_rw=True)
        self.qemu.add_device("vd1", "scsi-hd", share_rw=True)
        self.found()
        self.qemu.add_device("vd1", "scsi-hd", share_rw=False)
        self.assertIn("have: vd1 (", self.refused())


class MappingsTests(DiscoveryTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.backend = self.backends[0]
        self.inode = os.stat(self.backend.path).st_ino

    def line(self, start: int, end: int, offset: int = 0, flags: str = "rw-s", suffix: str = "") -> str:
        """A line about the backend."""
        return maps_line(start, end, offset, self.backend.path + suffix, self.inode, flags)

    def refusal(self, text: str) -> str:
        """Why these will not do."""
        return str(self.assertRaises(CannotProtect, mappings, 1, self.backend, text))

    def test_one(self) -> None:
        text = (
            "00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/qemu-system-x86_64\n"
            "7ffe0000-7fff0000 rw-p 00000000 00:00 0 \n"
            + self.line(0x7F0000000000, 0x7F0000100000)
            + "7fffb2c0d000-7fffb2c2e000 rw-p 00000000 00:00 0           [stack]\n"
        )
        self.assertEqual(mappings(1, self.backend, text), (MappedRange(0x7F0000000000, 0x7F0000100000, 0),))

    def test_neighbours_that_go_on_are_one(self) -> None:
        text = self.line(0x100000, 0x140000) + self.line(0x140000, 0x200000, 0x40000)
        self.assertEqual(mappings(1, self.backend, text), (MappedRange(0x100000, 0x200000, 0),))

    def test_others_are_several(self) -> None:
        apart = self.line(0x100000, 0x180000) + self.line(0x200000, 0x280000, 0x80000)
        crossed = self.line(0x100000, 0x180000, 0x80000) + self.line(0x180000, 0x200000, 0)
        self.assertEqual(
            mappings(1, self.backend, apart),
            (MappedRange(0x100000, 0x180000, 0), MappedRange(0x200000, 0x280000, 0x80000)),
        )
        self.assertEqual(
            mappings(1, self.backend, crossed),
            (MappedRange(0x100000, 0x180000, 0x80000), MappedRange(0x180000, 0x200000, 0)),
        )

    def test_what_is_beyond_the_backend_is_none_of_it(self) -> None:
        text = self.line(0x100000, 0x300000)
        self.assertEqual(mappings(1, self.backend, text), (MappedRange(0x100000, 0x200000, 0),))

    def test_a_symbolic_link_and_a_name_with_blanks(self) -> None:
        self.backend = self.new_backend("two words")
        self.inode = os.stat(self.backend.path).st_ino
        text = self.line(0x100000, 0x200000)
        link = self.directory / "link"
        link.symlink_to(self.backend.path)
        self.assertEqual(len(mappings(1, attrs.evolve(self.backend, path=str(link)), text)), 1)

    def test_a_private_copy_is_no_ram(self) -> None:
        self.assertIn("has no file", self.refusal(self.line(0x100000, 0x200000, flags="rw-p")))

    def test_a_file_that_was_deleted(self) -> None:
        self.assertIn("was deleted or replaced", self.refusal(self.line(0x100000, 0x200000, suffix=" (deleted)")))

    def test_another_file_of_the_same_name(self) -> None:
        self.inode += 1
        self.assertIn("has no file", self.refusal(self.line(0x100000, 0x200000)))

    def test_a_part_is_not_enough(self) -> None:
        self.assertIn(f"has 4096 of the {SIZE} bytes", self.refusal(self.line(0x100000, 0x101000)))

    def test_it_reads_what_the_kernel_says(self) -> None:
        self.new_process(12, self.line(0x100000, 0x200000))
        self.assertEqual(len(mappings(12, self.backend, proc=self.proc)), 1)

    def test_no_such_process(self) -> None:
        error = self.assertRaises(CannotProtect, mappings, 13, self.backend, proc=self.proc)
        self.assertIn("cannot read /proc/13/maps (No such file or directory)", str(error))

    def test_no_right_to_read_it(self) -> None:
        def forbidden(*_: object, **__: object) -> str:
            raise PermissionError(13, "Permission denied")

        self.patch(Path, "read_text", forbidden)
        error = self.assertRaises(CannotProtect, mappings, 13, self.backend, proc=self.proc)
        self.assertIn("run ftd as root, or as the user that QEMU runs as", str(error))
