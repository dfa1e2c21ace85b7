//! A server of S3's protocol on the loopback, for tests: signatures, XML, conditions and multipart
//! uploads are those of the crate `s3s`, objects are files of `s3s-fs`.
//!
//! Three things of that are made as S3 has them: a conditional put is one step, a read may ask for
//! an object's version, and a directory of the file system is no object.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

pub const KEY: &str = "AKIATESTTESTTESTTEST";
pub const SECRET: &str = "a secret of the tests";

/// A server that runs until it is dropped.
pub struct Server {
    dir: tempfile::TempDir,
    runtime: Option<Runtime>,
    pub endpoint: String,
    shared: Arc<Shared>,
}

/// All that a test may ask of a server, and see.
#[derive(Default)]
struct Shared {
    /// No request is answered.
    is_hung: AtomicBool,
    /// Every request is told to come later.
    is_busy: AtomicBool,
    uploads_in_parts: AtomicU64,
}

impl Server {
    /// One with an empty bucket.
    pub fn start(bucket: &str) -> Server {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(bucket)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let shared = Arc::new(Shared::default());
        let bucket = Bucket {
            files: FileSystem::new(dir.path()).unwrap(),
            root: dir.path().to_owned(),
            writing: tokio::sync::Mutex::default(),
            shared: Arc::clone(&shared),
        };
        let mut builder = S3ServiceBuilder::new(bucket);
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = builder.build();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Server { dir, runtime: Some(runtime), endpoint, shared }
    }

    /// All that a client must be told.
    pub fn environment(&self) -> HashMap<&'static str, String> {
        HashMap::from([
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ])
    }

    /// The directory of a bucket's objects.
    pub fn files(&self, bucket: &str) -> PathBuf {
        self.dir.path().join(bucket)
    }

    /// Lets every request wait for an answer that does not come.
    pub fn hang(&self) {
        self.shared.is_hung.store(true, Ordering::SeqCst);
    }

    /// Answers every request by "slow down", or no longer.
    pub fn be_busy(&self, is_busy: bool) {
        self.shared.is_busy.store(is_busy, Ordering::SeqCst);
    }

    pub fn uploads_in_parts(&self) -> u64 {
        self.shared.uploads_in_parts.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Requests that hang are not waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Bucket {
    files: FileSystem,
    root: PathBuf,
    /// Held from the look at a condition until the object is there.
    writing: tokio::sync::Mutex<()>,
    shared: Arc<Shared>,
}

impl Bucket {
    async fn begin(&self) -> S3Result<()> {
        if self.shared.is_hung.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        match self.shared.is_busy.load(Ordering::SeqCst) {
            true => Err(s3_error!(SlowDown)),
            false => Ok(()),
        }
    }

    /// Refuses what is a directory, or does not exist.
    fn look(&self, bucket: &str, key: &str) -> S3Result<()> {
        let dir = self.root.join(bucket);
        if !dir.is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        match dir.join(Path::new(key)).is_file() {
            true => Ok(()),
            false => Err(s3_error!(NoSuchKey)),
        }
    }
}

#[async_trait::async_trait]
impl S3 for Bucket {
    async fn put_object(
        &self,
        req: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        self.begin().await?;
        if !self.root.join(&req.input.bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        let _alone = self.writing.lock().await;
        self.files.put_object(req).await
    }

    async fn head_object(
        &self,
        req: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.begin().await?;
        let _alone = self.writing.lock().await;
        self.look(&req.input.bucket, &req.input.key)?;
        self.files.head_object(req).await
    }

    async fn get_object(
        &self,
        req: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        self.begin().await?;
        self.look(&req.input.bucket, &req.input.key)?;
        let wanted = req.input.if_match.clone();
        let found = self.files.get_object(req).await?;
        let is_other = wanted.as_ref().and_then(ETagCondition::as_etag).is_some_and(|wanted| {
            found.output.e_tag.as_ref().is_none_or(|found| !found.strong_cmp(wanted))
        });
        match is_other {
            true => Err(s3_error!(PreconditionFailed)),
            false => Ok(found),
        }
    }

    async fn copy_object(
        &self,
        req: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        self.begin().await?;
        let _alone = self.writing.lock().await;
        self.files.copy_object(req).await
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.begin().await?;
        if !self.root.join(&req.input.bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        // Files come and go while they are listed one by one.
        let _alone = self.writing.lock().await;
        self.files.list_objects_v2(req).await
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.begin().await?;
        let _alone = self.writing.lock().await;
        self.files.delete_object(req).await
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        self.begin().await?;
        let _alone = self.writing.lock().await;
        self.files.delete_objects(req).await
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.begin().await?;
        self.shared.uploads_in_parts.fetch_add(1, Ordering::SeqCst);
        self.files.create_multipart_upload(req).await
    }

    async fn upload_part(
        &self,
        req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        self.begin().await?;
        self.files.upload_part(req).await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.begin().await?;
        let _alone = self.writing.lock().await;
        self.files.complete_multipart_upload(req).await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.begin().await?;
        self.files.abort_multipart_upload(req).await
    }
}
