//! An object store in memory that counts requests, and fails at any of them: before it has had its
//! effect, or after, so that the answer is lost.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use checkpoint::objects::{Limits, ObjectDisk};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};

/// The fault at the chosen request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request does not arrive.
    Before,
    /// It is done, and its answer is lost.
    After,
    /// As `Before`, and so with every later one: the process has died.
    DeadBefore,
    /// As `After`, and every later one does not arrive.
    DeadAfter,
}

pub const FAULTS: [Fault; 4] = [Fault::Before, Fault::After, Fault::DeadBefore, Fault::DeadAfter];

/// The answer to what the disk never asks for, and so nobody has tried.
fn unknown(operation: &str) -> Error {
    let (operation, implementer) = (operation.to_owned(), "Faulty".to_owned());
    Error::NotImplemented { operation, implementer }
}

/// Something that happens just before a request for a name.
type Event = Box<dyn FnOnce() + Send>;

/// The store; clones share it.
#[derive(Clone)]
pub struct Faulty {
    store: Arc<InMemory>,
    requests: Arc<AtomicU64>,
    fault: Arc<Mutex<Option<(u64, Fault)>>>,
    event: Arc<Mutex<Option<(String, Event)>>>,
    /// Whether conditions of puts are passed over, as some servers do.
    is_careless: bool,
}

impl Faulty {
    pub fn new() -> Faulty {
        Faulty {
            store: Arc::new(InMemory::new()),
            requests: Arc::default(),
            fault: Arc::default(),
            event: Arc::default(),
            is_careless: false,
        }
    }

    /// One that overwrites whatever a request says.
    pub fn careless() -> Faulty {
        Faulty { is_careless: true, ..Faulty::new() }
    }

    /// A store of its own with the same objects, and no fault.
    pub fn fork(&self) -> Faulty {
        Faulty { store: Arc::new(self.store.fork()), ..Faulty::new() }
    }

    /// Lets request number `at` fail, from 0 and counted from the fork.
    pub fn inject(&self, at: u64, fault: Fault) {
        *self.fault.lock().unwrap() = Some((at, fault));
    }

    /// Does something just before the next put of an object whose name ends so.
    pub fn before_put(&self, end: &str, event: impl FnOnce() + Send + 'static) {
        *self.event.lock().unwrap() = Some((end.to_owned(), Box::new(event)));
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// A disk on it, whose parts are short so that small files have several.
    pub fn disk(&self) -> ObjectDisk {
        ObjectDisk::of(Arc::new(self.clone()), limits())
    }

    /// Every object with its bytes.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        let store = Arc::clone(&self.store);
        futures(async move {
            let all: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
            let mut objects = BTreeMap::new();
            for meta in all {
                let bytes = store.get(&meta.location).await.unwrap().bytes().await.unwrap();
                objects.insert(meta.location.to_string(), bytes);
            }
            objects
        })
    }

    /// Puts bytes in place of an object, as somebody might.
    pub fn replace(&self, name: &str, bytes: &[u8]) {
        let (store, path) = (Arc::clone(&self.store), Path::from(name));
        let bytes = PutPayload::from(bytes.to_vec());
        futures(async move { store.put(&path, bytes).await.unwrap() });
    }

    /// Does a request, or fails, or both.
    async fn request<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        let fault = *self.fault.lock().unwrap();
        match fault {
            Some((at, Fault::Before | Fault::DeadBefore)) if number == at => Err(lost()),
            Some((at, Fault::After | Fault::DeadAfter)) if number == at => {
                call.await.ok();
                Err(lost())
            }
            Some((at, Fault::DeadBefore | Fault::DeadAfter)) if number > at => Err(lost()),
            _ => call.await,
        }
    }
}

/// Shards have many parts, and a `COMMIT` is one put.
pub const PART_BYTES: usize = 256;

fn limits() -> Limits {
    Limits { part_bytes: PART_BYTES, in_flight: 2, ..Limits::default() }
}

fn lost() -> Error {
    Error::Generic { store: "faulty", source: "the answer was lost".into() }
}

fn futures<T>(call: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(call)
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut opts: PutOptions,
    ) -> Result<PutResult> {
        if self.is_careless {
            opts.mode = object_store::PutMode::Overwrite;
        }
        let due = self.event.lock().unwrap().take_if(|(end, _)| location.as_ref().ends_with(&*end));
        if let Some((_, event)) = due {
            // It has requests of its own, and waits for them.
            tokio::task::spawn_blocking(event).await.unwrap();
        }
        self.request(self.store.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        // The disk gives its parts numbers, by another trait.
        Err(unknown("put_multipart_opts"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.request(self.store.get_opts(location, options)).await
    }

    async fn get_ranges(&self, _: &Path, _: &[Range<u64>]) -> Result<Vec<Bytes>> {
        // The disk asks for one range at a time.
        Err(unknown("get_ranges"))
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        // One request for all, which may be done in part.
        let this = self.clone();
        let all = async move {
            let locations: Vec<Path> = locations.try_collect().await?;
            let store = Arc::clone(&this.store);
            let (first, rest) = locations.split_at(locations.len() / 2);
            let delete = |some: Vec<Path>| {
                let store = Arc::clone(&store);
                async move {
                    let some = stream::iter(some).map(Ok).boxed();
                    store.delete_stream(some).try_collect::<Vec<Path>>().await
                }
            };
            delete(first.to_vec()).await?;
            this.request(delete(rest.to_vec())).await?;
            Ok::<_, Error>(stream::iter(locations.into_iter().map(Ok)))
        };
        stream::once(all).try_flatten().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, found) = (self.clone(), self.store.list(prefix));
        let all = async move {
            let all: Vec<ObjectMeta> = this.request(found.try_collect()).await?;
            Ok::<_, Error>(stream::iter(all.into_iter().map(Ok)))
        };
        stream::once(all).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.request(self.store.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.request(self.store.copy_opts(from, to, options)).await
    }
}

#[async_trait::async_trait]
impl MultipartStore for Faulty {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        self.request(self.store.create_multipart(path)).await
    }

    async fn create_multipart_opts(
        &self,
        path: &Path,
        opts: PutMultipartOptions,
    ) -> Result<MultipartId> {
        self.request(self.store.create_multipart_opts(path, opts)).await
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        part_idx: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        self.request(self.store.put_part(path, id, part_idx, data)).await
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        self.request(self.store.complete_multipart(path, id, parts)).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        self.request(self.store.abort_multipart(path, id)).await
    }
}
