//! Programs in other languages, with their packages from a registry.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::Program;

/// How long an installation may take: it asks a package registry.
const INSTALLED_WITHIN: Duration = Duration::from_secs(180);

/// Python as it is on this machine.
pub(crate) fn python() -> PathBuf {
    std::env::var_os("PYTHON").map_or("python3".into(), PathBuf::from)
}

/// A Python that has what a folder's `requirements.txt` names.
pub(crate) async fn python_with_packages(name: &str, folder: &Path) -> PathBuf {
    let installed = installed(name, folder, &["requirements.txt"], async |to| {
        let venv = to.join("venv");
        succeeds(Command::new(python()).args(["-m", "venv"]).arg(&venv)).await;
        let mut pip = Command::new(venv.join("bin/python"));
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-r"]);
        succeeds(pip.arg(folder.join("requirements.txt"))).await;
    });
    installed.await.join("venv/bin/python")
}

/// A copy of some files of a folder, beside the packages that its `package-lock.json` names; `scripts` are run there.
pub(crate) async fn node_with_packages(name: &str, folder: &Path, files: &[&str], scripts: &[&str]) -> PathBuf {
    installed(name, folder, files, async |to| {
        for file in files {
            fs::create_dir_all(to.join(file).parent().unwrap()).unwrap();
            fs::copy(folder.join(file), to.join(file)).unwrap();
        }
        succeeds(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(to)).await;
        for script in scripts {
            succeeds(Command::new("npm").args(["run", script]).current_dir(to)).await;
        }
    })
    .await
}

/// Runs a program to its end, which must be a good one.
async fn succeeds(command: &mut Command) {
    let ended = Program::start(command).ended_within(INSTALLED_WITHIN).await;
    assert_eq!(ended.code, Some(0), "{:?}\n{ended}", command.as_std());
}

/// A folder under `target/` with what was installed for some files of another one. It is made once, and again when
/// one of the files changes.
async fn installed(name: &str, of: &Path, files: &[&str], install: impl AsyncFnOnce(&Path)) -> PathBuf {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(base).unwrap();
    let (folder, stamp) = (base.join(name), base.join(format!("{name}.sha256")));
    // Another test, or another run of the tests, may be at it.
    let lock = File::create(base.join(format!("{name}.lock"))).unwrap();
    let locked = async {
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        while lock.try_lock().is_err() {
            pace.tick().await;
        }
    };
    assert!(tokio::time::timeout(INSTALLED_WITHIN, locked).await.is_ok(), "{name} is locked by another run");

    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(of.join(file)).unwrap());
    }
    let hash = HEXLOWER.encode(&hash.finalize());
    if fs::read_to_string(&stamp).is_ok_and(|stamped| stamped == hash) && folder.is_dir() {
        return folder;
    }
    drop(fs::remove_file(&stamp));
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder).unwrap();
    install(&folder).await;
    fs::write(&stamp, hash).unwrap();
    folder
}
