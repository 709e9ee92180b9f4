//! A nats-server of the test's own.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_nats::jetstream::{self, consumer};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{DEADLINE, eventually, free_port, within};

/// A nats-server with JetStream on a temporary folder. Ends with the test.
pub(crate) struct Nats {
    folder: TempDir,
    port: u16,
    server: Option<Child>,
    /// Whether it was paused and not let go on.
    paused: AtomicBool,
    client: Client,
    /// Holds the disk of its own, if it has one.
    disk: Option<Child>,
}

/// A message as it stands in its stream.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
}

impl Message {
    /// The value of a header, by its exact name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }

    /// The payload as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.payload).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Nats {
    /// A server that takes messages up to 8 MB.
    pub(crate) async fn start() -> Self {
        Self::start_with("max_payload: 8MB").await
    }

    /// A server with further settings.
    pub(crate) async fn start_with(settings: &str) -> Self {
        let mut nats = Self::absent(settings).await;
        nats.run();
        nats.answers().await;
        nats
    }

    /// A server that syncs what it stores to the disk before it confirms it.
    pub(crate) async fn start_synced() -> Self {
        Self::start_synced_with("").await
    }

    /// A server with these settings and no others.
    pub(crate) async fn start_as(settings: &str) -> Self {
        let mut nats = Self::prepare(settings).await;
        nats.run();
        nats.answers().await;
        nats
    }

    /// A server whose streams are on a disk of this size, which nobody else sees. `None` where this machine does not
    /// let a test mount one, which is an error in CI.
    pub(crate) async fn start_on_a_disk_of(size: &str) -> Option<Self> {
        // More than there is: the server would keep to three quarters of the disk by itself.
        let jetstream = "jetstream { store_dir: \"$FOLDER/jetstream\", max_file_store: 1GB }";
        let mut nats = Self::prepare(&format!("{jetstream}\nmax_payload: 8MB")).await;
        std::fs::create_dir_all(nats.store()).unwrap();
        let mount = format!("mount -t tmpfs -o size={size} tmpfs {}", nats.store().display());
        // The namespace, and with it the disk, lives as long as this shell, which waits for the end of its input.
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "--map-root-user", "sh", "-c", &format!("{mount} && echo mounted && cat")]);
        let holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mounted = holder.ok().and_then(|mut holder| {
            let mut said = [0; 8];
            std::io::Read::read_exact(holder.stdout.as_mut()?, &mut said).is_ok().then_some(holder)
        });
        let Some(holder) = mounted else {
            assert!(std::env::var_os("CI").is_none(), "unshare and mount are needed");
            skipped("this machine does not let a test mount a disk");
            return None;
        };
        nats.disk = Some(holder);
        nats.run();
        nats.answers().await;
        Some(nats)
    }

    /// The same with further settings.
    pub(crate) async fn start_synced_with(settings: &str) -> Self {
        let jetstream = "jetstream { store_dir: \"$FOLDER/jetstream\", sync_interval: always }";
        let mut nats = Self::prepare(&format!("{jetstream}\nmax_payload: 8MB\n{settings}")).await;
        nats.run();
        nats.answers().await;
        nats
    }

    /// A server that keeps nothing.
    pub(crate) async fn without_jetstream() -> Self {
        let mut nats = Self::prepare("").await;
        nats.run();
        nats.answers().await;
        nats
    }

    async fn answers(&self) {
        match tokio::time::timeout(DEADLINE, self.client.flush()).await {
            Ok(flushed) => flushed.unwrap(),
            Err(_) => panic!("nats-server does not answer: {}", self.log()),
        }
    }

    /// A place for a server that does not run yet.
    pub(crate) async fn absent(settings: &str) -> Self {
        Self::prepare(&format!("jetstream {{ store_dir: \"$FOLDER/jetstream\" }}\n{settings}")).await
    }

    async fn prepare(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let settings = settings.replace("$FOLDER", folder.path().to_str().unwrap());
        let text = format!("listen: 127.0.0.1:{port}\n{settings}\n");
        std::fs::write(folder.path().join("nats.conf"), text).unwrap();
        let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
        let client = options.connect(format!("nats://127.0.0.1:{port}")).await.unwrap();
        Self { folder, port, server: None, paused: AtomicBool::new(false), client, disk: None }
    }

    /// What introduces itself as a server of another version, and is nothing beyond that.
    pub(crate) async fn posing_as(version: &str) -> Self {
        let nats = Self::prepare("").await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, nats.port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let info = format!(
            "INFO {{\"server_id\":\"x\",\"version\":\"{version}\",\"proto\":1,\"max_payload\":1048576,\"headers\":true,\"jetstream\":true}}\r\n"
        );
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let info = info.clone();
                tokio::spawn(async move {
                    let mut asked = Vec::new();
                    drop(socket.write_all(info.as_bytes()).await);
                    while socket.read_buf(&mut asked).await.is_ok_and(|read| read > 0) {
                        for _ in asked.windows(4).filter(|window| *window == b"PING") {
                            drop(socket.write_all(b"PONG\r\n").await);
                        }
                        asked.clear();
                    }
                });
            }
        });
        nats
    }

    /// Starts the server on its folder and port.
    pub(crate) fn run(&mut self) {
        let log = std::fs::File::create(self.folder.path().join("nats.log")).unwrap();
        let mut command = Command::new(program());
        if let Some(disk) = &self.disk {
            command = Command::new("nsenter");
            command.args(["--preserve-credentials", "--user", "--mount", "--target", &disk.id().to_string()]);
            command.arg(program());
        }
        let server = command
            .arg("-c")
            .arg(self.folder.path().join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; `make tools` brings one", program().display()));
        self.server = Some(server);
    }

    /// Starts the server and waits until its streams are there again.
    pub(crate) async fn run_again(&mut self) {
        self.run();
        let jetstream = self.jetstream();
        eventually("JetStream to answer", async || jetstream.query_account().await.ok()).await;
    }

    /// Stops the server's clock, as it were: it holds its connections and answers nothing.
    pub(crate) fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
        self.signal("STOP");
    }

    /// Lets a paused server go on.
    pub(crate) fn go_on(&self) {
        self.signal("CONT");
        self.paused.store(false, Ordering::Relaxed);
    }

    /// Sends the server a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.server.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([format!("-{name}"), id]).status().unwrap().success());
    }

    /// Whether the server was started, and neither killed nor paused.
    pub(crate) fn is_running(&self) -> bool {
        self.server.is_some() && !self.paused.load(Ordering::Relaxed)
    }

    /// Whether the server has ended by itself or by a signal, which is only noticed here.
    pub(crate) fn has_ended(&mut self) -> bool {
        let ended = self.server.as_mut().is_none_or(|server| server.try_wait().unwrap().is_some());
        if ended {
            self.server = None;
        }
        ended
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where the server keeps its streams.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("jetstream/jetstream")
    }

    /// Kills the server, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
        self.paused.store(false, Ordering::Relaxed);
    }

    /// Removes everything that a killed server has stored.
    pub(crate) fn empty(&self) {
        assert!(self.server.is_none(), "the server still runs");
        std::fs::remove_dir_all(self.folder.path().join("jetstream")).unwrap();
    }

    /// Copies what a killed server has stored.
    pub(crate) fn back_up(&self) -> TempDir {
        assert!(self.server.is_none(), "the server still runs");
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&self.folder.path().join("jetstream"), &copy.path().join("jetstream"));
        copy
    }

    /// Puts an earlier copy in the place of what a killed server has stored.
    pub(crate) fn restore(&self, copy: &TempDir) {
        self.empty();
        copy_folder(&copy.path().join("jetstream"), &self.folder.path().join("jetstream"));
    }

    /// Cuts each file of a stream's messages to its first `percent` percent, as a torn write of a killed server's disk.
    pub(crate) fn cut(&self, stream: &str, percent: u64) {
        assert!(self.server.is_none(), "the server still runs");
        let messages = self.folder.path().join("jetstream/jetstream/$G/streams").join(stream).join("msgs");
        let mut cut = 0;
        for file in std::fs::read_dir(&messages).unwrap() {
            let path = file.unwrap().path();
            // What indexes the messages is not cut off, but out of date as after a power cut.
            if path.extension().is_some_and(|extension| extension == "blk") {
                let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.set_len(file.metadata().unwrap().len() * percent / 100).unwrap();
                cut += 1;
            }
        }
        assert!(cut > 0, "{stream} has no messages in {}", messages.display());
    }

    /// Deletes a stream, as an operator does.
    pub(crate) async fn delete(&self, stream: &str) {
        within("a stream to be deleted", self.jetstream().delete_stream(stream)).await.unwrap();
    }

    /// Removes every message of a stream, as an operator does. Returns how many there were.
    pub(crate) async fn purge(&self, stream: &str) -> u64 {
        let purge = async { self.jetstream().get_stream(stream).await.unwrap().purge().await.unwrap().purged };
        within("a stream to be purged", purge).await
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// What the server has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("nats.log")).unwrap()
    }

    pub(crate) fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client.clone())
    }

    /// Publishes as an agent does, and returns whether the stream called it a duplicate.
    pub(crate) async fn publish(&self, subject: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, *value);
        }
        let published = async {
            let ack = self.jetstream().publish_with_headers(subject.to_owned(), map, body.into()).await.unwrap();
            ack.await.unwrap()
        };
        within("the stream's ack", published).await.duplicate
    }

    /// Asks for an answer; none if there is none within two seconds.
    pub(crate) async fn request(&self, subject: &str, payload: Bytes) -> Option<Bytes> {
        let request = async_nats::Request::new().payload(payload).timeout(Some(Duration::from_secs(2)));
        self.client.send_request(subject.to_owned(), request).await.ok().map(|answer| answer.payload)
    }

    /// Publishes without caring for the answer, which is waited for no longer than two seconds.
    pub(crate) async fn provoke(&self, subject: &str, headers: &[(&str, &str)]) {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.append(*name, *value));
        let request = async_nats::Request::new().headers(map).timeout(Some(Duration::from_secs(2)));
        drop(self.client.send_request(subject.to_owned(), request).await);
    }

    /// Publishes a header line that no client library would write, through a socket.
    pub(crate) async fn publish_raw(&self, subject: &str, header: &str, body: &str) {
        let block = format!("NATS/1.0\r\n{header}\r\n\r\n");
        self.publish_blocks([(subject, block.as_bytes(), body)]).await;
    }

    /// Publishes messages with these header blocks, whatever they are, through one socket; an empty block is none.
    pub(crate) async fn publish_blocks<'a>(&self, messages: impl IntoIterator<Item = (&'a str, &'a [u8], &'a str)>) {
        let mut bytes = b"CONNECT {\"headers\":true,\"verbose\":false}\r\n".to_vec();
        for (subject, block, body) in messages {
            let (head, all) = (block.len(), block.len() + body.len());
            let line = match head {
                0 => format!("PUB {subject} {all}\r\n"),
                _ => format!("HPUB {subject} {head} {all}\r\n"),
            };
            bytes.extend([line.as_bytes(), block, body.as_bytes(), b"\r\n"].concat());
        }
        bytes.extend(b"PING\r\n");
        let published = async {
            let mut socket = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
            socket.write_all(&bytes).await.unwrap();
            let mut answer = Vec::new();
            while !answer.windows(4).any(|window| window == b"PONG") {
                assert_ne!(socket.read_buf(&mut answer).await.unwrap(), 0, "{}", String::from_utf8_lossy(&answer));
            }
        };
        within("a raw publish", published).await;
    }

    /// The first message on a subject, wildcards allowed; waits for it.
    pub(crate) async fn message(&self, stream: &str, subject: &str) -> Message {
        self.messages(stream, subject, 1).await.remove(0)
    }

    /// The first so many messages on a subject; waits for them.
    pub(crate) async fn messages(&self, stream: &str, subject: &str, count: usize) -> Vec<Message> {
        let read = async {
            let stream = self.jetstream().get_stream(stream).await.unwrap();
            let filter_subject = subject.to_owned();
            let ordered = consumer::pull::OrderedConfig { filter_subject, ..Default::default() };
            let messages = stream.create_consumer(ordered).await.unwrap().messages().await.unwrap();
            let read = |message: Result<jetstream::Message, _>| {
                let message = message.unwrap();
                Message {
                    subject: message.subject.to_string(),
                    headers: message.headers.clone().unwrap_or_default(),
                    payload: message.payload.clone(),
                }
            };
            messages.take(count).map(read).collect::<Vec<_>>().await
        };
        match tokio::time::timeout(DEADLINE, read).await {
            Ok(messages) => messages,
            Err(_) => {
                panic!("waited {DEADLINE:?} for {count} on {subject}; there are {:?}", self.subjects(stream).await)
            }
        }
    }

    /// A stream and its state; asks again while a cluster has other things to do.
    async fn stream(&self, name: &str) -> jetstream::stream::Stream {
        let jetstream = self.jetstream();
        eventually(&format!("the state of {name}"), async || jetstream.get_stream(name).await.ok()).await
    }

    /// Every message that a stream has now, and when it was stored.
    pub(crate) async fn all(&self, stream: &str) -> Vec<(Message, SystemTime)> {
        let count = usize::try_from(self.count(stream).await).unwrap();
        let read = async {
            let stream = self.stream(stream).await;
            let messages = stream.create_consumer(consumer::pull::OrderedConfig::default()).await.unwrap();
            let read = |message: Result<jetstream::Message, _>| {
                let message = message.unwrap();
                let stored = message.info().unwrap().published.into();
                let headers = message.headers.clone().unwrap_or_default();
                let (subject, payload) = (message.subject.to_string(), message.payload.clone());
                (Message { subject, headers, payload }, stored)
            };
            messages.messages().await.unwrap().take(count).map(read).collect::<Vec<_>>().await
        };
        within("every message of a stream", read).await
    }

    /// Every message in RETRY now, and its sequence. It is a work queue, which nobody but the courier may consume.
    pub(crate) async fn retries(&self) -> Vec<(u64, Message)> {
        let read = async {
            let stream = self.jetstream().get_stream("RETRY").await.unwrap();
            let (mut waiting, mut from) = (Vec::new(), 1);
            while let Ok(found) = stream.direct_get_next_for_subject("retry.>", Some(from)).await {
                from = found.sequence + 1;
                let (subject, headers, payload) = (found.subject.to_string(), found.headers, found.payload);
                waiting.push((found.sequence, Message { subject, headers, payload }));
            }
            waiting
        };
        within("every message that waits", read).await
    }

    /// Listens to a subject as anybody can who may subscribe: what is published from now on.
    pub(crate) async fn listen(&self, subject: &str) -> async_nats::Subscriber {
        let heard = self.client.subscribe(subject.to_owned()).await.unwrap();
        within("the subscription", self.client.flush()).await.unwrap();
        heard
    }

    /// What the server says of a durable.
    pub(crate) async fn consumer(&self, stream: &str, name: &str) -> Option<consumer::Info> {
        let stream = self.jetstream().get_stream_no_info(stream).await.ok()?;
        stream.consumer_info(name).await.ok()
    }

    /// How many messages the stream has.
    pub(crate) async fn count(&self, stream: &str) -> u64 {
        self.stream(stream).await.cached_info().state.messages
    }

    /// Whether a key of the bucket of endpoints is gone; what is left of it is a marker.
    pub(crate) async fn is_gone(&self, key: &str) -> bool {
        let bucket = self.jetstream().get_key_value("hookbridge_endpoints").await.unwrap();
        bucket.get(key).await.unwrap().is_none()
    }

    /// Whether there is a stream of this name.
    pub(crate) async fn has_stream(&self, stream: &str) -> bool {
        self.jetstream().get_stream(stream).await.is_ok()
    }

    /// Whether the stream has a durable of this name.
    pub(crate) async fn has_consumer(&self, stream: &str, name: &str) -> bool {
        let stream = self.jetstream().get_stream_no_info(stream).await.unwrap();
        stream.consumer_info(name).await.is_ok()
    }

    /// The subjects of all messages in a stream.
    pub(crate) async fn subjects(&self, stream: &str) -> Vec<String> {
        let stream = self.jetstream().get_stream(stream).await.unwrap();
        let all = stream.info_with_subjects(">").await.unwrap();
        let mut subjects: Vec<String> = all.map(|found| found.unwrap().0).collect().await;
        subjects.sort();
        subjects
    }
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let there = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &there);
        } else {
            std::fs::copy(entry.path(), there).unwrap();
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
        if let Some(mut disk) = self.disk.take() {
            drop(disk.kill());
            drop(disk.wait());
        }
    }
}

#[expect(clippy::print_stderr, reason = "for whoever wonders what was not tried")]
fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// Where the server's program is: `NATS_SERVER`, what `make tools` brought, or the PATH.
pub(crate) fn program() -> PathBuf {
    let tools = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".tools/nats-server");
    match std::env::var_os("NATS_SERVER") {
        Some(path) => path.into(),
        None if tools.is_file() => tools,
        None => "nats-server".into(),
    }
}
