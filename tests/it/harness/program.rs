//! Programs in processes of their own, as users run them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::hookbridge::BASE;
use super::{DEADLINE, Nats, eventually, request, within};

/// A configuration text of the test's own over what every test has, in files.
pub(crate) struct Configuration(TempDir);

impl Configuration {
    pub(crate) fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("base.toml"), BASE).unwrap();
        std::fs::write(folder.path().join("own.toml"), text).unwrap();
        Self(folder)
    }

    /// The path of the test's own file.
    pub(crate) fn own(&self) -> String {
        self.0.path().join("own.toml").to_str().unwrap().to_owned()
    }

    /// `hookbridge` with these files.
    pub(crate) fn hookbridge(&self, arguments: &[&str]) -> Command {
        let mut command = binary(arguments);
        command.arg("--config").arg(self.0.path().join("base.toml")).arg("--config").arg(self.own());
        command
    }

    /// `hookbridge` with these files, which say which servers to use.
    pub(crate) fn start(self, arguments: &[&str]) -> Program {
        let program = Program::start(&mut self.hookbridge(arguments));
        Program { files: Some(self), ..program }
    }

    /// `hookbridge` with these files, and with so many open files: the limit that it starts with, and the one that it
    /// may raise it to.
    pub(crate) fn with_files(&self, arguments: &[&str], soft: u32, hard: u32) -> Command {
        let hookbridge = self.hookbridge(arguments);
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\""));
        command.arg(hookbridge.as_std().get_program()).args(hookbridge.as_std().get_args());
        for (name, _) in hookbridge.as_std().get_envs().filter(|(_, value)| value.is_none()) {
            command.env_remove(name);
        }
        command
    }

    /// `hookbridge gateway` with these files.
    pub(crate) fn gateway(self, nats: &Nats) -> Program {
        let program = Program::start(&mut self.hookbridge(&["gateway", "--nats", &nats.url()]));
        Program { files: Some(self), ..program }
    }

    /// `hookbridge courier` with these files, as often as it is asked for.
    pub(crate) fn courier(&self, nats: &Nats) -> Program {
        Program::start(&mut self.hookbridge(&["courier", "--nats", &nats.url()]))
    }

    /// `hookbridge serve` with these files.
    pub(crate) fn serve(self, nats: &Nats) -> Program {
        self.start(&["serve", "--nats", &nats.url()])
    }
}

/// `hookbridge` with arguments, and nothing from the test's environment that it would listen to.
pub(crate) fn binary(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hookbridge"));
    let is_ours = |name: &str| name.starts_with("HOOKBRIDGE") || name == "RUST_LOG";
    for (name, _) in std::env::vars().filter(|(name, _)| is_ours(name)) {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

/// A port that nothing listens on, and that nobody gets who asks the system for any port: a client that knocks again
/// and again at a closed port of that range ends up connected to itself, and the server finds its port taken.
pub(crate) fn free_port() -> u16 {
    const FROM: u32 = 10_240;
    const COUNT: u32 = 20_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let next = first.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FROM + next % COUNT).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free between {FROM} and {}", FROM + COUNT)
}

/// A running program. Ends with the test.
pub(crate) struct Program {
    child: Child,
    stdout: Output,
    stderr: Output,
    /// What it reads for as long as it runs.
    #[expect(dead_code, reason = "held, so that the files stay")]
    files: Option<Configuration>,
}

/// What a program that has ended left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code; none when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    #[track_caller]
    pub(crate) fn assert_code(&self, expected: i32) -> &Self {
        assert_eq!(self.code, Some(expected), "{self}");
        self
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "exit code {:?}\n{}{}", self.code, self.stdout, self.stderr)
    }
}

/// Runs a program to its end.
pub(crate) async fn run(command: &mut Command) -> Ended {
    Program::start(command).ended().await
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Self {
        let pipes = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let spawned = pipes.spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{:?}: {error}", command.as_std().get_program()));
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { child, stdout: Output::of(stdout), stderr: Output::of(stderr), files: None }
    }

    /// The first line on standard output with a text in it; waits for it.
    pub(crate) async fn says(&self, text: &str) -> String {
        self.line(&self.stdout, text).await
    }

    /// The first line on standard error with a text in it; waits for it.
    pub(crate) async fn complains(&self, text: &str) -> String {
        self.line(&self.stderr, text).await
    }

    async fn line(&self, output: &Output, text: &str) -> String {
        match tokio::time::timeout(DEADLINE, output.line(text)).await {
            Ok(Some(line)) => line,
            Ok(None) => panic!("it ended without {text:?}:\n{}{}", self.stdout.text(), self.stderr.text()),
            Err(_) => {
                panic!("waited {DEADLINE:?} for {text:?} in:\n{}{}", self.stdout.text(), self.stderr.text())
            }
        }
    }

    /// What it has written to standard output.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to standard error.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// The URL that a running `hookbridge` logs for its gateway.
    pub(crate) async fn gateway(&self) -> String {
        self.url("Gateway listens on ").await
    }

    /// The URL that a running `hookbridge` logs for its admin pages.
    pub(crate) async fn admin(&self) -> String {
        self.url("Admin listens on ").await
    }

    /// Waits until a running `hookbridge` can use NATS.
    pub(crate) async fn ready(&self) {
        let page = format!("{}/readyz", self.admin().await);
        let ready = async || (request("GET", &page, &[], "").await.status == 200).then_some(());
        eventually("the process to be ready", ready).await;
    }

    /// The value of a metric, by the whole text before its value; 0 for one that is not there.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let page = request("GET", &format!("{}/metrics", self.admin().await), &[], "").await.text();
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    async fn url(&self, before: &str) -> String {
        let line: serde_json::Value = serde_json::from_str(&self.complains(before).await).unwrap();
        format!("http://{}", line["server.address"].as_str().unwrap())
    }

    /// Sends a signal, such as `TERM`.
    pub(crate) async fn signal(&self, name: &str) {
        let id = self.child.id().expect("it has not been waited for").to_string();
        let sent = within("kill", Command::new("kill").arg(format!("-{name}")).arg(id).status()).await.unwrap();
        assert!(sent.success(), "{}", self.stderr());
    }

    /// Stops it where it stands, until [`Program::go_on`]. What is sent to it meanwhile waits in the operating system.
    pub(crate) async fn pause(&self) {
        self.signal("STOP").await;
        let status = format!("/proc/{}/status", self.child.id().unwrap());
        let stopped = async || std::fs::read_to_string(&status).unwrap().contains("State:\tT").then_some(());
        eventually("the process to stand still", stopped).await;
    }

    /// Lets it go on.
    pub(crate) async fn go_on(&self) {
        self.signal("CONT").await;
    }

    /// Takes its unused file descriptors away: what it opens from now on fails, until it has closed something.
    pub(crate) async fn use_up_files(&self) {
        let id = self.child.id().unwrap();
        let open = std::fs::read_dir(format!("/proc/{id}/fd")).unwrap();
        let used: BTreeSet<u32> =
            open.filter_map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().ok()).collect();
        // The limit is one of numbers, of which the lowest that is free is taken.
        let soft = format!("--nofile={}:", (0..).find(|number| !used.contains(number)).unwrap());
        let mut prlimit = Command::new("prlimit");
        let set = within("prlimit", prlimit.arg("--pid").arg(id.to_string()).arg(soft).status()).await.unwrap();
        assert!(set.success(), "{}", self.stderr());
    }

    /// Kills it, as `kill -9` does, and waits until it is gone.
    pub(crate) async fn kill(mut self) {
        within("the process to be gone", self.child.kill()).await.unwrap();
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(self) -> Ended {
        self.ended_within(DEADLINE).await
    }

    /// Waits until it ends by itself, for as long as the test says.
    pub(crate) async fn ended_within(mut self, deadline: Duration) -> Ended {
        let ended = async {
            let status = self.child.wait().await.unwrap();
            self.stdout.closed().await;
            self.stderr.closed().await;
            status
        };
        match tokio::time::timeout(deadline, ended).await {
            Ok(status) => Ended { code: status.code(), stdout: self.stdout(), stderr: self.stderr() },
            Err(_) => panic!("waited {deadline:?} for the end of:\n{}{}", self.stdout(), self.stderr()),
        }
    }
}

/// All that came through a pipe. It is read all the time, so that the other end never has to wait.
struct Output(watch::Receiver<String>);

impl Output {
    fn of(pipe: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let (tell, text) = watch::channel(String::new());
        tokio::spawn(async move {
            let (mut pipe, mut line) = (BufReader::new(pipe), Vec::new());
            while pipe.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
                tell.send_modify(|text| text.push_str(&String::from_utf8_lossy(&line)));
                line.clear();
            }
        });
        Self(text)
    }

    fn text(&self) -> String {
        self.0.borrow().clone()
    }

    /// The first line with a text in it; none if the pipe closes before.
    async fn line(&self, wanted: &str) -> Option<String> {
        let find = |text: &str| text.lines().find(|line| line.contains(wanted)).map(str::to_owned);
        let mut text = self.0.clone();
        text.wait_for(|text| find(text).is_some()).await.ok().and_then(|text| find(&text))
    }

    /// Waits until there is nothing more to read.
    async fn closed(&self) {
        let mut text = self.0.clone();
        while text.changed().await.is_ok() {}
    }
}
