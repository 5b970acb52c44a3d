//! A real S3 server (moto's) in a process of its own, which ends with the test in every case.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server with a bucket. It takes every key and secret.
pub struct S3 {
    process: Child,
    pub address: SocketAddr,
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the server runs: it ends when its standard input does, and so with this process in every case.
const SCRIPT: &str = "
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
from moto.server import main
main(['-H', '127.0.0.1', '-p', sys.argv[1]])
";

impl S3 {
    /// Starts a server on a free port, and makes the bucket.
    pub fn start(bucket: &str) -> Self {
        let setting = |name| std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: use `make test`"));
        // Free a moment ago: the kernel gives other ports to whoever asks next.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new(setting("WEIGHTSMITH_PYTHON"));
        command.args(["-c", SCRIPT, &address.port().to_string()]).env("PYTHONPATH", setting("WEIGHTSMITH_MOTO"));
        command.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Self { process: command.spawn().unwrap(), address };
        let began = Instant::now();
        while let Err(error) = server.make_bucket(bucket) {
            assert!(server.process.try_wait().unwrap().is_none(), "moto has ended: run `scripts/setup.py tests`");
            assert!(began.elapsed() < Duration::from_secs(60), "moto does not answer: {error}");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// As a client would, with the smallest request that does it.
    fn make_bucket(&self, bucket: &str) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.address)?;
        let authorization = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request";
        let request = format!(
            "PUT /{bucket} HTTP/1.1\r\nhost: {}\r\nauthorization: {authorization}\r\ncontent-length: 0\r\n\
             connection: close\r\n\r\n",
            self.address
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.contains(" 200 ") { Ok(()) } else { Err(io::Error::other(answer)) }
    }
}
