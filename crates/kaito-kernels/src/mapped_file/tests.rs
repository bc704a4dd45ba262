use std::{fs, io::Write, path::PathBuf};

use super::*;

/// A file that is removed with the value.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("kaito-{name}-{}", std::process::id()));
        fs::write(&path, content).unwrap();
        Self(path)
    }

    fn write_in_place(&self, content: &[u8]) {
        File::options().write(true).open(&self.0).unwrap().write_all(content).unwrap();
    }

    fn set_modified(&self, seconds: u64) {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        File::options().write(true).open(&self.0).unwrap().set_modified(time).unwrap();
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn ranges_beyond_the_end_are_populated_and_released_as_far_as_they_go() {
    let content: Vec<u8> = (0..10_000u32).map(|at| at as u8).collect();
    let path = Temporary::new("populate", &content);
    let file = MappedFile::open(&path.0).unwrap();
    for (offset, len) in [(0, 0), (0, 10_000), (4097, 1), (9_999, usize::MAX), (10_000, 5), (usize::MAX, 1)] {
        file.populate(offset, len);
        file.release(offset, len);
    }
    assert_eq!(file.bytes(), content);
}

#[test]
fn what_is_done_to_a_mapped_file_is_told_and_what_is_done_to_its_name_is_not() {
    type Deed = fn(&Temporary);
    let size = |now| Some(WhatChanged::Size { before: 5, now });
    for (name, deed, what) in [
        ("read", (|file| drop(fs::read(&file.0).unwrap())) as Deed, None),
        ("truncated", |file| fs::write(&file.0, "").unwrap(), size(0)),
        ("appended", |file| file.write_in_place(b"longer"), size(6)),
        ("overwritten", |file| file.write_in_place(b"other"), Some(WhatChanged::Contents)),
        ("made-older", |file| file.set_modified(1), Some(WhatChanged::Contents)),
        ("removed", |file| fs::remove_file(&file.0).unwrap(), None),
        (
            "replaced",
            |file| {
                let other = file.0.with_extension("other");
                fs::write(&other, "something else").unwrap();
                fs::rename(&other, &file.0).unwrap();
            },
            None,
        ),
    ] {
        let path = Temporary::new(name, b"bytes");
        // Written a while ago, as weights are: the clock of a file system may be coarse.
        path.set_modified(1_000_000_000);
        let file = MappedFile::open(&path.0).unwrap();
        assert_eq!(file.change(), None, "{name}");
        deed(&path);
        assert_eq!(file.change(), what.map(|what| FileChange { path: path.0.clone(), what }), "{name}");
    }
}

#[cfg(unix)]
mod bus_errors {
    use std::{
        env,
        os::unix::process::ExitStatusExt,
        process::{Command, Output},
    };

    use super::*;

    /// Says which end the process of [`child`] is to come to, and with which file.
    const ROLE: &str = "KAITO_TEST_BUS_ERROR";
    const FILE: &str = "KAITO_TEST_BUS_ERROR_FILE";

    fn end_as(role: &str, file: &Temporary) -> Output {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "mapped_file::tests::bus_errors::child", "--nocapture", "--test-threads=1"]);
        command.env(ROLE, role).env(FILE, &file.0).output().unwrap()
    }

    /// Not a test but the process that others look at, since it does not survive; without a role it does nothing.
    #[test]
    fn child() {
        let (Ok(role), Some(path)) = (env::var(ROLE), env::var_os(FILE)) else { return };
        let path = Path::new(&path);
        let file = MappedFile::open(path).unwrap();
        let cut = || File::options().write(true).open(path).unwrap().set_len(0).unwrap();
        let read = |at: usize| {
            std::hint::black_box(file.bytes()[at]);
        };
        match role.as_str() {
            "truncated" => {
                cut();
                read(10_000);
            }
            "truncated for many threads" => {
                cut();
                std::thread::scope(|scope| {
                    for thread in 0..8 {
                        scope.spawn(move || read(thread * 2000));
                    }
                });
            }
            "populated" => {
                cut();
                file.populate(0, 20_000);
            }
            "elsewhere" => {
                let other = File::open(path).unwrap();
                // SAFETY: to read it ends this process, which is what is wanted.
                let other = unsafe { memmap2::Mmap::map(&other).unwrap() };
                cut();
                std::hint::black_box(other[10_000]);
            }
            "sent" => {
                // SAFETY: it ends this process.
                unsafe { libc::raise(libc::SIGBUS) };
            }
            other => panic!("{other}"),
        }
        panic!("still alive");
    }

    #[test]
    fn the_process_that_dies_of_a_truncated_file_names_it() {
        for (role, named) in [
            ("truncated", true),
            ("truncated for many threads", true),
            ("populated", true),
            ("elsewhere", false),
            ("sent", false),
        ] {
            let file = Temporary::new("lost\nforged", &[7; 20_000]);
            let output = end_as(role, &file);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{role}: {said}");
            let lines: Vec<&str> = said.lines().filter(|line| line.contains("was truncated")).collect();
            assert_eq!(lines.len(), usize::from(named), "{role}: {said}");
            if let [line] = lines[..] {
                assert!(line.starts_with("error: /") && line.contains("lost?forged-"), "{line}");
            }
        }
    }
}
