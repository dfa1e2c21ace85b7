//! One string column of a parquet file, row by row (feature `parquet`).

use std::fs::File;
use std::path::Path;

use parquet::basic::Type as PhysicalType;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use crate::error::{DataError, Result, io_error};

/// Calls `row` with the bytes of `column` in every row that has them, until it returns false.
pub(crate) fn for_each_row(
    path: &Path,
    column: &str,
    row: &mut dyn FnMut(&[u8]) -> Result<bool>,
) -> Result<bool> {
    let fail = |e: parquet::errors::ParquetError| {
        let (path, reason) = (path.to_path_buf(), format!("parquet: {e}"));
        DataError::Encode { path, reason }
    };
    let file = File::open(path).map_err(io_error("open", path))?;
    let reader = SerializedFileReader::new(file).map_err(fail)?;
    let schema = reader.metadata().file_metadata().schema();
    let projection = project(path, schema, column)?;
    for found in reader.get_row_iter(Some(projection)).map_err(fail)? {
        let found = found.map_err(fail)?;
        let wanted = match found.get_column_iter().next() {
            Some((_, Field::Str(text))) => row(text.as_bytes())?,
            Some((_, Field::Bytes(bytes))) => row(bytes.data())?,
            _ => true, // A null is no document.
        };
        if !wanted {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The schema with `column` alone, so that no other column is decoded.
fn project(path: &Path, schema: &Type, column: &str) -> Result<Type> {
    let fail = |reason: String| DataError::Encode { path: path.to_path_buf(), reason };
    let found = schema.get_fields().iter().find(|f| f.name() == column).ok_or_else(|| {
        let names: Vec<String> =
            schema.get_fields().iter().take(12).map(|f| format!("`{}`", f.name())).collect();
        fail(format!(
            "no column `{column}`; it has {} (name another with data.jsonl_field, or --field)",
            names.join(", ")
        ))
    })?;
    if !found.is_primitive() || found.get_physical_type() != PhysicalType::BYTE_ARRAY {
        return Err(fail(format!("column `{column}` does not hold text")));
    }
    let projected = Type::group_type_builder(schema.name()).with_fields(vec![found.clone()]);
    projected.build().map_err(|e| fail(format!("parquet: {e}")))
}
